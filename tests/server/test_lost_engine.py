"""An engine that dies or hangs: whoever waits for it is told at once, and everything is given back."""

import asyncio
import json
from collections.abc import Callable

import httpx
import pytest

from server.engine.fake import BASE_MARK
from server.in_flight import InFlight
from server.running import _last_resort
from server.supervisor import ENGINE_LOST
from tests.server.uploading import as_multipart, files_of
from tests.server.world import World, in_thread, wait_until

CHAT = {"messages": [{"role": "user", "content": "hi"}], "adapter": "support", "max_tokens": 1900}


@pytest.fixture
def database() -> str:
    """It plays no part."""
    return "sqlite"


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A server that takes little time to see that its engine hangs, with one adapter."""
    world = make_world(stall_seconds=1, heartbeat_seconds=600)
    world.publish("acme", "support", seed=1)
    return world


def lose(world: World, how: str) -> None:
    world.live.call(_run(getattr(world.engine, how)))


async def _run(action: Callable[[], None]) -> None:
    action()


def wait_until_all_is_given_back(world: World) -> None:
    wait_until(lambda: not any(world.residency().values()))
    wait_until(lambda: world.metric('lorikeet_requests_total{adapter="support",') == 1)


@pytest.mark.parametrize("how", ["kill", "stall", "halt"])
def test_a_stream_ends_with_an_error_event_and_done(world: World, how: str) -> None:
    with (
        world.client() as client,
        client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as stream,
    ):
        lines = stream.iter_lines()
        assert "choices" in next(lines)
        lose(world, how)
        *_, error, done = (line for line in lines if line)
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "engine_unavailable"
    assert done == "data: [DONE]"
    wait_until_all_is_given_back(world)


@pytest.mark.parametrize("how", ["stall", "halt"])
def test_a_stream_of_typed_events_ends_with_a_typed_error(world: World, how: str) -> None:
    body = {"input": "hi", "adapter": "support", "max_output_tokens": 1900, "stream": True}
    with world.client() as client, client.stream("POST", "/v1/responses", json=body) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("event: response")
        lose(world, how)
        *_, kind, event = (line for line in lines if line)
    assert kind == "event: error"
    said = json.loads(event.removeprefix("data: "))
    assert (said["type"], said["error"]["code"]) == ("error", "engine_unavailable")


@pytest.mark.parametrize("how", ["stall", "halt"])
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_has_not_begun_is_503(world: World, how: str, *, stream: bool) -> None:
    world.close_gate()
    answer = in_thread(lambda: world.ask("support", stream=stream))
    wait_until(lambda: sum(world.engine.running.values()) == 1)
    lose(world, how)
    response = answer()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
    assert response.headers["retry-after"]
    wait_until_all_is_given_back(world)


def test_a_request_that_waits_for_its_turn_is_503(make_world: Callable[..., World]) -> None:
    world = make_world(max_num_seqs=1, stall_seconds=1)
    world.close_gate()
    answers = [in_thread(world.ask) for _ in range(3)]
    wait_until(lambda: world.engine.running[BASE_MARK] == 2)
    lose(world, "stall")
    assert [answer().json()["error"]["code"] for answer in answers] == ["engine_unavailable"] * 3


def test_a_request_that_waits_for_its_adapter_is_503(world: World) -> None:
    lose(world, "stall")
    loading = in_thread(lambda: world.ask("support"))
    asking = in_thread(world.ask)  # what shows that it hangs
    assert [answer().json()["error"]["code"] for answer in (loading, asking)] == ["engine_unavailable"] * 2
    wait_until(lambda: not any(world.residency().values()))


def test_an_upload_whose_probe_waits_is_503(world: World) -> None:
    lose(world, "stall")
    files = as_multipart(files_of(world.make_folder(seed=2)))

    def upload() -> httpx.Response:
        with world.client("acme-admin") as client:
            return client.post("/admin/v1/tenants/acme/adapters/spare/versions", **files)

    uploading = in_thread(upload)
    wait_until(lambda: world.ask().status_code == 503)
    response = uploading()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")


def test_a_promote_whose_load_waits_is_503(world: World) -> None:
    world.publish("acme", "support", seed=2, promote=False)
    lose(world, "stall")

    def promote() -> httpx.Response:
        with world.client("acme-admin") as client:
            return client.put("/admin/v1/tenants/acme/adapters/support/aliases/live", json={"version": 2})

    promoting = in_thread(promote)
    wait_until(lambda: world.ask().status_code == 503)
    response = promoting()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")


def test_what_comes_after_the_loss_is_503_and_the_server_is_not_ready(world: World) -> None:
    lose(world, "halt")
    with world.client() as client:
        wait_until(lambda: client.get("/readyz").status_code == 503)
        refused = client.get("/readyz")
    assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("engine_unavailable", "2")
    assert "stalled" in refused.json()["error"]["message"]
    assert world.ask().status_code == 503


def test_what_was_being_probed_is_not_unloaded_from_a_lost_engine(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    unloaded: list[object] = []

    async def unload(adapter: object) -> None:
        unloaded.append(adapter)
        await asyncio.Event().wait()

    monkeypatch.setattr(world.engine, "unload", unload)
    world.publish("acme", "fresh", seed=2, is_probed=False)
    world.close_gate()
    answer = in_thread(lambda: world.ask("fresh"))
    wait_until(lambda: sum(world.engine.running.values()) == 1)
    lose(world, "stall")
    assert answer().status_code == 503
    world.live.__exit__(None, None, None)
    assert not unloaded


def test_the_teardown_after_a_loss_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr("server.running.LOST_SECONDS", 0.0)
    monkeypatch.setattr("server.running.os._exit", codes.append)
    with _last_resort() as at_loss:
        in_flight = InFlight(at_loss)
        in_flight.lose()
        in_flight.lose()
        wait_until(lambda: codes == [ENGINE_LOST])


def test_a_teardown_in_time_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr("server.running.LOST_SECONDS", 5.0)
    monkeypatch.setattr("server.running.os._exit", codes.append)
    with _last_resort() as at_loss:
        InFlight(at_loss).lose()
    assert not codes
