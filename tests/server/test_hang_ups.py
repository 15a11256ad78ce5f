"""A client that hangs up, at whatever phase, gives back its lease and stops its generation."""

import http.client
import json
import socket
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from urllib.parse import urlsplit

import pytest

from adapters import TenantLimits
from tests.server.world import OPERATOR, World, wait_until

CHAT = {"messages": [{"role": "user", "content": "hi"}], "adapter": "support", "max_tokens": 50}


def send_chat(world: World, **fields: object) -> http.client.HTTPConnection:
    """A request on its way, over a connection that the test can cut."""
    address = urlsplit(world.live.base_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    headers = {"authorization": f"Bearer {world.keys['acme']}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(CHAT | fields), headers)
    return connection


def hang_up(connection: http.client.HTTPConnection) -> None:
    """Cut it as a crashed client does."""
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()


def wait_until_all_is_given_back(world: World) -> None:
    wait_until(lambda: not any(world.engine.running.values()))
    wait_until(lambda: not any(world.residency().values()))
    wait_until(lambda: world.metric('lorikeet_requests_total{adapter="support",outcome="client_gone"') == 1)
    assert world.engine.health() == "ready"


@pytest.mark.parametrize("fields", [{"stream": True}, {"stream": False}, {"stream": True, "n": 4}])
def test_before_the_first_byte(world: World, fields: dict[str, object]) -> None:
    world.publish("acme", "support", seed=1)
    world.close_gate()
    connection = send_chat(world, **fields)
    wait_until(lambda: any(world.engine.running.values()))
    assert world.residency() == {"acme/support@1": 1}
    hang_up(connection)
    wait_until_all_is_given_back(world)


def test_in_the_middle_of_a_stream(world: World) -> None:
    world.publish("acme", "support", seed=1)
    connection = send_chat(world, stream=True, max_tokens=1900)
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    world.close_gate()
    assert any(world.engine.running.values())
    hang_up(connection)
    response.close()
    wait_until_all_is_given_back(world)


def test_while_the_adapter_is_being_loaded(world: World) -> None:
    world.publish("acme", "support", seed=1, is_probed=False)  # its first load waits for a probe, which the gate holds
    world.close_gate()
    connection = send_chat(world)
    wait_until(lambda: any(world.engine.running.values()))
    hang_up(connection)
    wait_until(lambda: world.residency() == {"acme/support@1": 0})
    world.open_gate()
    wait_until(lambda: clients_gone(world) == 1)
    assert world.answer_marks("support")


def clients_gone(world: World) -> float:
    with world.client("platform") as client:
        lines = client.get("/metrics").text.splitlines()
    gone = [line for line in lines if line.startswith("lorikeet_requests_total{") and 'outcome="client_gone"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in gone)


def test_while_waiting_for_its_turn(make_world: Callable[..., World]) -> None:
    world = make_world(max_loras=1, max_cpu_loras=3)
    world.publish("acme", "hot", seed=1)
    world.publish("acme", "support", seed=2)
    world.close_gate()
    holder = send_chat(world, adapter="hot", stream=True)
    wait_until(lambda: world.residency() == {"acme/hot@1": 1})
    waiter = send_chat(world)
    wait_until(lambda: world.residency() == {"acme/hot@1": 1, "acme/support@1": 0})  # loaded while it waits
    hang_up(waiter)
    wait_until(lambda: clients_gone(world) == 1)
    hang_up(holder)
    wait_until(lambda: clients_gone(world) == 2)
    wait_until(lambda: world.residency() == {"acme/hot@1": 0, "acme/support@1": 0})
    world.open_gate()
    assert world.ask("support").status_code == world.ask("hot").status_code == 200


def test_when_every_slot_is_held_a_request_waits_and_is_then_told_to_come_back(
    make_world: Callable[..., World],
) -> None:
    world = make_world(max_loras=1, max_cpu_loras=2, queue_timeout_seconds=0.2)
    world.publish("acme", "hot", seed=1)
    world.publish("acme", "support", seed=2)
    world.close_gate()
    holder = send_chat(world, adapter="hot")
    wait_until(lambda: world.residency() == {"acme/hot@1": 1})
    response = world.ask("support")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "queue_timeout")
    assert response.headers["retry-after"]
    assert world.residency() == {"acme/hot@1": 1}
    world.open_gate()
    with holder.getresponse() as answer:
        assert answer.status == 200
    holder.close()
    assert world.ask("support").status_code == 200


def begin_chat(world: World) -> http.client.HTTPConnection:
    """A request whose body never ends."""
    address = urlsplit(world.live.base_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    connection.putrequest("POST", "/v1/chat/completions")
    headers = {"authorization": f"Bearer {world.keys['acme']}", "content-type": "application/json"}
    for name, value in (headers | {"content-length": "100"}).items():
        connection.putheader(name, value)
    connection.endheaders(b"{")
    return connection


def test_a_body_that_does_not_end_is_given_up_and_its_place_given_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.asked.BODY_SECONDS", 0.05)
    world.registry.tenants.set_limits(OPERATOR, "acme", TenantLimits(max_concurrency=1))
    with closing(begin_chat(world)) as connection, connection.getresponse() as refused:
        assert (refused.status, refused.headers["connection"]) == (408, "close")
        assert json.load(refused)["error"]["code"] == "request_timeout"
    monkeypatch.undo()
    assert world.ask().status_code == 200


def test_in_the_middle_of_the_body(make_world: Callable[..., World]) -> None:
    world = make_world(ledger_seconds=0.01)
    hang_up(begin_chat(world))
    wait_until(lambda: world.metric('lorikeet_requests_total{adapter="",outcome="client_gone"') == 1)
    today = datetime.now(UTC).date()
    used = partial(world.registry.usage.read, OPERATOR, since=today - timedelta(days=1), until=today, by=())
    wait_until(lambda: bool(used()))
    assert [(row.requests, row.failed_requests) for row in used()] == [(1, 0)]
