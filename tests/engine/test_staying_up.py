"""`lorikeet serve` on the real engine: what is killed or stopped under it, and what it does about it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from adapters import Base, Limits, Scope, folder_members, open_registry
from tests.engine.conftest import MAX_RANK, OPERATOR
from tests.live_server import free_port

pytestmark = pytest.mark.engine
SECONDS_TO_TELL = 10
STALL_SECONDS = 3


class Served:
    """The command as an operator starts it, with its supervisor. Whoever needs it up waits until it is."""

    def __init__(self, home: Path, key: str) -> None:
        self._home = home
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self._port}", headers={"authorization": f"Bearer {key}"}, timeout=60
        )

    def ensure_up(self) -> None:
        """Start it, unless it runs; wait until it answers."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        wait_until(self.is_ready, 400)

    def _start(self) -> None:
        variables = {
            "LORIKEET_HOME": str(self._home),
            "LORIKEET_MAX_RANK": str(MAX_RANK),
            "LORIKEET_KV_CACHE_MEMORY_BYTES": str(1 << 27),
            "LORIKEET_STALL_SECONDS": str(STALL_SECONDS),
        }
        options = ("--base", "tiny", "--max-loras", 2, "--max-cpu-loras", 4, "--max-model-len", 1024, "--supervise")
        lorikeet = Path(sys.executable).with_name("lorikeet")
        with (self._home / "serve.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(lorikeet), "serve", "--port", str(self._port), *map(str, options)],
                env=os.environ | variables,  # noqa: TID251  — an operator's shell
                stdout=log,
                stderr=log,
            )

    def is_ready(self) -> bool:
        """By its own word."""
        try:
            return self.client.get("/readyz").is_success
        except httpx.TransportError:
            return False

    @property
    def supervisor(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid)

    @property
    def api(self) -> psutil.Process:
        """The process that listens."""
        (child,) = self.supervisor.children()
        return child

    @property
    def engine(self) -> psutil.Process:
        """vLLM's EngineCore."""
        return next(child for child in self.api.children(recursive=True) if "EngineCore" in child.name())

    @contextmanager
    def stream(self) -> Iterator[Iterator[str]]:
        """A long answer of the adapter, of which the first line was read: its other lines that are not empty."""
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 900, "ignore_eos": True, "stream": True}
        with self.client.stream("POST", "/v1/chat/completions", json=body | {"adapter": "support"}) as response:
            lines = (line for line in response.iter_lines() if line)
            assert "error" not in next(lines)
            yield lines

    def answers(self) -> bool:
        """Whether the adapter does."""
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "adapter": "support"}
        response = self.client.post("/v1/chat/completions", json=body)
        return response.is_success and response.headers["x-lorikeet-adapter"] == "acme/support@1"

    def wait(self) -> int:
        """For its end: the exit code."""
        assert self._process is not None
        return self._process.wait(60)

    def close(self) -> None:
        """Stop it at once."""
        self.client.close()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.terminate()
            self._process.wait(60)


@pytest.fixture(scope="module")
def running(tiny_base: Base, strong_adapters: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("home")
    with open_registry(home, limits=Limits(max_rank=MAX_RANK)) as registry:
        registry.bases.add(OPERATOR, tiny_base)
        registry.tenants.create(OPERATOR, "acme")
        key = registry.keys.issue(OPERATOR, "acme", name="test", scopes=frozenset({Scope.INFER})).secret
        members = folder_members(strong_adapters[0])
        published = registry.versions.publish(OPERATOR, "acme", "support", members, base=tiny_base.fingerprint)
        registry.aliases.promote(OPERATOR, "acme", "support", published.version.number)
    served = Served(home, key)
    try:
        yield served
    finally:
        served.close()


@pytest.fixture
def served(running: Served) -> Served:
    running.ensure_up()
    return running


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_engine_ends_streams_at_once_and_the_adapter_comes_back_by_itself(
    served: Served, fault: signal.Signals
) -> None:
    with served.stream() as lines:
        engine = served.engine
        engine.send_signal(fault)
        began = time.monotonic()
        *_, error, done = lines
        told_after_seconds = time.monotonic() - began
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "engine_unavailable"
    assert done == "data: [DONE]"
    assert told_after_seconds < SECONDS_TO_TELL
    wait_until(lambda: is_gone(engine), 30)
    served.ensure_up()
    assert served.answers()


def test_an_idle_engine_that_is_stopped_is_noticed(served: Served) -> None:
    served.engine.suspend()
    wait_until(lambda: not served.is_ready(), SECONDS_TO_TELL)
    served.ensure_up()
    assert served.answers()


def test_the_engine_ends_with_a_server_that_is_killed_and_another_takes_its_place(served: Served) -> None:
    engine = served.engine
    served.api.kill()
    wait_until(lambda: is_gone(engine), 10)
    served.ensure_up()
    assert served.answers()


def test_a_stop_lets_a_stream_end_and_exits_with_0(served: Served) -> None:
    with served.stream() as lines:
        served.supervisor.terminate()
        *_, done = lines
    assert done == "data: [DONE]"
    assert served.wait() == 0


def is_gone(process: psutil.Process) -> bool:
    """A zombie is."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(is_true: Callable[[], bool], seconds: float) -> None:
    """Ask again and again."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.1)  # or it would take the processor that the server starts with
