"""A stop lets what runs end, tells what comes to go elsewhere, and cuts off what takes too long."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from adapters import Scope, open_registry
from server.cli import app
from server.engine.fake import BASE_MARK, FakeEngine
from tests.builders import make_base
from tests.live_server import free_port
from tests.server.world import OPERATOR, in_thread, wait_until

BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}


class Stage:
    """What a test does from another thread, while the command serves in the main one, which gets the signals."""

    def __init__(self, engine: FakeEngine, port: str, key: str) -> None:
        self.engine = engine
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Bearer {key}"}, timeout=30
        )

    def begin(self, **fields: Any) -> Callable[[], httpx.Response]:
        """A chat that runs; what comes back waits for its answer."""
        before = self.engine.running[BASE_MARK]
        answer = in_thread(lambda: self.client.post("/v1/chat/completions", json=BODY | fields))
        wait_until(lambda: self.engine.running[BASE_MARK] > before)
        return answer

    def stop(self) -> None:
        """As an operator does, and wait until it is seen."""
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: self.client.get("/readyz").status_code == 503)

    def is_ready(self) -> bool:
        try:
            return self.client.get("/readyz").is_success
        except httpx.ConnectError:
            return False


Play = Callable[[Callable[[Stage], Any]], tuple[Result, Any]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Serve, with a scene played beside it: how the command ended, and what the scene gave."""
    monkeypatch.setenv("LORIKEET_HOME", str(tmp_path))
    monkeypatch.setenv("LORIKEET_DRAIN_SECONDS", "1")
    monkeypatch.setattr("server.cli.prepare_environment", lambda: None)
    with open_registry(tmp_path) as registry:
        registry.bases.add(OPERATOR, make_base())
        registry.tenants.create(OPERATOR, "acme")
        key = registry.keys.issue(OPERATOR, "acme", name="test", scopes=frozenset({Scope.INFER})).secret

    def run(scene: Callable[[Stage], Any]) -> tuple[Result, Any]:
        engine, port = FakeEngine("tiny"), str(free_port())
        monkeypatch.setattr("server.running.build_engine", lambda *_: engine)
        engine.gate.clear()
        stage = Stage(engine, port, key)

        def played() -> Any:
            wait_until(stage.is_ready)
            try:
                return scene(stage)
            except BaseException:
                os.kill(os.getpid(), signal.SIGTERM)
                raise

        with stage.client:
            told = in_thread(played)
            result = CliRunner().invoke(app, ["--base", "tiny", "--port", port])
            return result, told()

    return run


def test_what_runs_is_answered_and_the_exit_code_is_0(play: Play) -> None:
    def scene(stage: Stage) -> int:
        answer = stage.begin()
        stage.stop()
        stage.engine.gate.set()
        return answer().status_code

    result, status = play(scene)
    assert (status, result.exit_code) == (200, 0), result.output


def test_what_comes_meanwhile_is_told_to_go_elsewhere(play: Play) -> None:
    def scene(stage: Stage) -> list[httpx.Response]:
        answer = stage.begin()
        stage.stop()
        refused = [
            stage.client.post("/v1/chat/completions", json=BODY),
            stage.client.get("/v1/models"),
            stage.client.get("/readyz"),
        ]
        stage.engine.gate.set()
        answer()
        return refused

    result, refused = play(scene)
    for response in refused:
        assert (response.status_code, response.json()["error"]["code"]) == (503, "server_draining")
        assert (response.headers["connection"], response.headers["retry-after"]) == ("close", "2")
    assert result.exit_code == 0


def test_what_takes_too_long_is_cut_off_and_said(play: Play) -> None:
    def scene(stage: Stage) -> httpx.Response:
        answer = stage.begin()
        stage.stop()
        return answer()

    result, response = play(scene)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "server_draining")
    assert (result.exit_code, "1 requests still ran and were cut off" in result.stderr) == (3, True)


def test_a_stream_that_is_cut_off_ends_with_an_error_event(play: Play) -> None:
    def scene(stage: Stage) -> list[str]:
        stage.engine.gate.set()
        body = BODY | {"stream": True, "max_tokens": 1900}
        with stage.client.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = stream.iter_lines()
            assert "choices" in next(lines)
            stage.engine.gate.clear()
            os.kill(os.getpid(), signal.SIGTERM)
            return [line for line in lines if line][-2:]

    result, (error, done) = play(scene)
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "server_draining"
    assert (done, result.exit_code) == ("data: [DONE]", 3)


def test_a_second_signal_ends_the_patience(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIKEET_DRAIN_SECONDS", "3600")

    def scene(stage: Stage) -> httpx.Response:
        answer = stage.begin()
        stage.stop()
        os.kill(os.getpid(), signal.SIGTERM)
        return answer()

    result, response = play(scene)
    assert (response.status_code, result.exit_code) == (503, 3)


def test_a_server_that_is_stopped_while_its_engine_starts_exits_with_0(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(engine: FakeEngine) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        engine._health = engine._health.READY

    monkeypatch.setattr(FakeEngine, "start", start)
    monkeypatch.setattr("tests.server.test_drain.wait_until", lambda *_: None)
    result, _ = play(lambda _stage: None)
    assert result.exit_code == 0
    assert "listening" not in result.output


def test_a_second_signal_while_the_engine_starts_ends_all_at_once(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []

    async def start(_engine: FakeEngine) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(FakeEngine, "start", start)
    monkeypatch.setattr("server.serving.os._exit", left.append)
    monkeypatch.setattr("tests.server.test_drain.wait_until", lambda *_: None)
    play(lambda _stage: None)
    assert left == [0]
