"""One server for one SQLite home, several for one PostgreSQL."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters import RegistryError
from adapters.cli import app as adapters_app
from server.cli import app
from server.errors import SettingsError
from server.single import only_server
from tests.live_server import free_port

HOLD = """
import sys, time
from pathlib import Path
from server.single import only_server
with only_server(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORIKEET_HOME", str(tmp_path))
    monkeypatch.setattr("server.cli.prepare_environment", lambda: None)  # it sets variables for the whole process
    return tmp_path


def test_a_second_server_on_one_sqlite_home_is_refused(home: Path) -> None:
    with only_server(home):
        result = CliRunner().invoke(app, ["--port", str(free_port())])
    assert isinstance(result.exception, SettingsError)
    assert result.exception.code == "server_running"
    assert "LORIKEET_DATABASE_URL" in result.exception.message


def test_a_second_server_on_one_postgresql_is_not(
    home: Path, new_postgresql: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORIKEET_DATABASE_URL", new_postgresql())
    with only_server(home):
        result = CliRunner().invoke(app, ["--port", str(free_port()), "--base", "nothing"])
    assert isinstance(result.exception, RegistryError)
    assert result.exception.code == "base_not_found"


def test_commands_run_beside_a_server(home: Path) -> None:
    with only_server(home):
        assert CliRunner().invoke(adapters_app, ["tenants", "create", "acme"]).exit_code == 0


def test_a_server_that_was_killed_leaves_no_lock(home: Path) -> None:
    with _other_server(home) as other:
        with pytest.raises(SettingsError), only_server(home):
            pass
        other.kill()
        other.wait(60)
        with only_server(home):
            pass


def test_a_server_that_has_stopped_leaves_room_for_the_next(home: Path) -> None:
    for _ in range(2):
        with only_server(home):
            pass


@contextmanager
def _other_server(home: Path) -> Iterator[subprocess.Popen[str]]:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(home)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other
    finally:
        other.kill()
        other.communicate()
