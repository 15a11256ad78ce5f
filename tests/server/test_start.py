"""Starting: what is imported, which settings are refused, and what the command says before the engine is loaded."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from adapters import open_registry
from server.cli import app
from server.configuration import configure
from server.engine.fake import FakeEngine
from server.engine.protocol import EngineError, Health
from server.errors import SettingsError
from server.secret import read_or_make_secret
from server.settings import ServerSettings
from tests.builders import make_base
from tests.live_server import free_port
from tests.server.world import OPERATOR, in_thread, wait_until

BLOCKED = """
import sys
for name in ("torch", "vllm", "transformers", "peft", "trl"):
    sys.modules[name] = None
import adapters, server.app, server.cli, server.engine.fake
"""


def test_the_server_is_imported_without_any_ml_package() -> None:
    subprocess.run([sys.executable, "-c", BLOCKED], check=True, timeout=60)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"max_lora_rank": "24"}, "--max-lora-rank"),
        ({"max_loras": "0"}, "--max-loras"),
        ({"max_loras": "8", "max_cpu_loras": "8"}, "max_cpu_loras"),
        ({"port": "70000"}, "--port"),
        ({"dtype": "int3"}, "--dtype"),
        ({"max_model_len": "63"}, "--max-model-len"),
    ],
)
def test_settings_that_cannot_be_are_named_in_one_line(flags: dict[str, str | None], named: str) -> None:
    with pytest.raises(SettingsError) as refused:
        configure(flags)
    assert named in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(("highest", "step"), [(1, 1), (8, 8), (9, 16), (64, 64), (65, 128), (512, 512)])
def test_the_engine_starts_at_the_step_that_covers_the_registrys_rank(highest: int, step: int) -> None:
    assert ServerSettings().rank_step(highest) == step


@pytest.mark.parametrize(("chosen", "step"), [(64, 64), (128, 128), (32, None)])
def test_a_rank_below_the_registrys_is_refused_with_the_one_that_would_do(chosen: int, step: int | None) -> None:
    settings = ServerSettings.model_validate({"max_lora_rank": chosen})
    if step is not None:
        assert settings.rank_step(64) == step
        return
    with pytest.raises(SettingsError, match=r"max_lora_rank \(32\).*choose 64"):
        settings.rank_step(64)


@pytest.mark.parametrize("found", [b"", b"short", b"x" * 33])
def test_a_secret_that_is_none_of_ours_is_refused(tmp_path: Path, found: bytes) -> None:
    (tmp_path / "server.secret").write_bytes(found)
    with pytest.raises(SettingsError) as refused:
        read_or_make_secret(tmp_path)
    assert refused.value.code == "invalid_secret"


def test_a_secret_that_was_made_is_on_the_disk_and_so_is_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[bool, int]] = []  # whether it is the folder, and the file's size

    def note(descriptor: int) -> None:
        found = os.fstat(descriptor)
        synced.append((stat.S_ISDIR(found.st_mode), 0 if stat.S_ISDIR(found.st_mode) else found.st_size))

    monkeypatch.setattr(os, "fsync", note)
    read_or_make_secret(tmp_path)
    assert synced == [(False, 32), (True, 0)]


def test_the_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    secret = read_or_make_secret(tmp_path)
    assert len(secret) >= 32
    assert read_or_make_secret(tmp_path) == secret
    assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()] == [0o600]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORIKEET_HOME", str(tmp_path))
    monkeypatch.setattr("server.cli.prepare_environment", lambda: None)  # it sets variables for the whole process
    return tmp_path


def test_a_port_that_is_taken_is_named_before_anything_is_loaded(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["--port", str(port)])
    assert isinstance(result.exception, SettingsError)
    assert (result.exception.code, str(port) in result.exception.message) == ("port_unavailable", True)
    assert not list(home.iterdir())


def test_without_any_key_only_this_machine_may_reach_the_server(home: Path) -> None:
    with open_registry(home) as registry:
        registry.bases.add(OPERATOR, make_base())
    result = CliRunner().invoke(app, ["--host", "0.0.0.0", "--port", str(free_port()), "--base", "tiny"])  # noqa: S104  — the point
    assert isinstance(result.exception, SettingsError)
    assert result.exception.code == "no_api_key"


def test_an_unknown_base_is_named(home: Path) -> None:
    result = CliRunner().invoke(app, ["--base", "nothing", "--port", str(free_port())])
    assert getattr(result.exception, "code", None) == "base_not_found"
    assert home.exists()


@pytest.fixture
def serving(home: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[FakeEngine, list[str]]:
    """A fake engine in the command's hands, and the command's arguments."""
    with open_registry(home) as registry:
        registry.bases.add(OPERATOR, make_base())
    engine = FakeEngine("tiny")
    monkeypatch.setattr("server.running.build_engine", lambda *_: engine)
    return engine, ["--base", "tiny", "--port", str(free_port())]


def test_the_command_serves_until_it_is_stopped_and_then_exits_0(serving: tuple[FakeEngine, list[str]]) -> None:
    engine, arguments = serving
    stopped = in_thread(lambda: _stop_when_ready(engine, arguments[-1]))
    result = CliRunner().invoke(app, arguments)
    stopped()
    assert result.exit_code == 0, result.output
    assert f"listening on http://127.0.0.1:{arguments[-1]}" in result.output


def test_the_command_exits_with_75_when_the_engine_dies(serving: tuple[FakeEngine, list[str]]) -> None:
    engine, arguments = serving
    killed = in_thread(lambda: _when_ready(arguments[-1], engine.kill))
    result = CliRunner().invoke(app, arguments)
    killed()
    assert result.exit_code == 75
    assert "the engine died" in result.output


def test_the_command_exits_with_75_when_the_engine_hangs(serving: tuple[FakeEngine, list[str]]) -> None:
    engine, arguments = serving
    stalled = in_thread(lambda: _when_ready(arguments[-1], engine.halt))
    result = CliRunner().invoke(app, arguments)
    stalled()
    assert result.exit_code == 75


def test_an_engine_that_does_not_start_is_one_line_and_exit_code_1(
    serving: tuple[FakeEngine, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    engine, arguments = serving
    engine.start_failure = EngineError("the KV cache does not fit in memory")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.stderr == "lorikeet: the engine did not start: the KV cache does not fit in memory\n"
    assert "listening" not in result.output
    assert not caplog.records


def _stop_when_ready(engine: FakeEngine, port: str) -> None:
    _when_ready(port, lambda: os.kill(os.getpid(), signal.SIGTERM))
    wait_until(lambda: engine.health() is Health.STARTING)


def _when_ready(port: str, action: Callable[[], None]) -> None:
    wait_until(lambda: _is_ready(port))
    action()


def _is_ready(port: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").is_success
    except httpx.ConnectError:
        return False


def test_help_has_an_example() -> None:
    assert "Example: lorikeet serve" in CliRunner().invoke(app, ["--help"]).output
