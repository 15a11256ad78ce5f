"""A tenant's limits over HTTP: 429 for it, with when to come back, and nothing for the others."""

import http.client
import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from openai import RateLimitError

from server.admission import COUNTS_AT_ONCE, COUNTS_OF_ONE, Counts
from server.errors import OverloadedError, RateLimitedError
from tests.server.administering import ACME, call
from tests.server.test_hang_ups import hang_up, send_chat
from tests.server.world import World, wait_until


def limit(world: World, **limits: int | None) -> None:
    """Set acme's, as the platform does."""
    answer = call(world, "PATCH", ACME, "platform", json={"limits": limits})
    assert answer.status_code == 200, answer.text


def test_a_tenant_over_its_requests_is_429_and_another_is_not(world: World) -> None:
    limit(world, requests_per_minute=2)
    answers = [world.ask() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    assert answers[2].json()["error"] == {
        "message": "This tenant may make 2 requests a minute (requests_per_minute): come back in 30s.",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert answers[2].headers["retry-after"] == "30"
    assert world.ask(key="zoo").status_code == 200
    assert not [name for name in world.ask(key="zoo").headers if name.startswith("x-ratelimit")]


def test_the_official_client_knows_the_refusal(world: World) -> None:
    limit(world, requests_per_minute=0)
    with world.openai() as client, pytest.raises(RateLimitError) as caught:
        client.chat.completions.create(model=world.base.name, messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "rate_limit_exceeded"


def test_a_refusal_comes_before_the_body_is_read_and_reaches_no_engine(world: World) -> None:
    limit(world, requests_per_minute=0)
    with world.client() as client:
        answer = client.post("/v1/chat/completions", content=b"{" * 500_000)
    assert answer.status_code == 429
    assert world.engine.seen_bodies == []


def test_a_changed_limit_holds_at_the_next_request(world: World) -> None:
    limit(world, requests_per_minute=1)
    assert [world.ask().status_code for _ in range(2)] == [200, 429]
    limit(world, requests_per_minute=3)
    assert world.ask().status_code == 200
    limit(world, requests_per_minute=None)
    assert "x-ratelimit-limit-requests" not in world.ask().headers


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 2, "stream": True}, {"stream": True, "n": 3}])
def test_tokens_are_counted_as_they_pass_and_become_a_debt(world: World, fields: dict[str, Any]) -> None:
    limit(world, tokens_per_minute=10)
    first = world.ask(max_tokens=20, **fields)
    assert (first.status_code, first.headers["x-ratelimit-remaining-tokens"]) == (
        200,
        "0",
    )  # its likely tokens are reserved
    refused = world.ask()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    spent = 2 + 20 * fields.get("n", 1)
    assert int(refused.headers["retry-after"]) in range((spent - 10) * 6 - 5, (spent - 10) * 6 + 2)


@pytest.mark.parametrize("stream", [True, False])
def test_a_hang_up_gives_its_place_back(world: World, stream: bool) -> None:  # noqa: FBT001
    world.publish("acme", "support", seed=1)
    limit(world, max_concurrency=1)
    world.close_gate()
    connection = send_chat(world, stream=stream)
    wait_until(lambda: any(world.engine.running.values()))
    refused = world.ask()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "concurrency_limit_exceeded")
    assert refused.headers["retry-after"] == "1"
    hang_up(connection)
    world.open_gate()
    wait_until(lambda: world.ask().status_code == 200)


def test_a_stream_holds_its_place_until_its_last_byte(world: World) -> None:
    world.publish("acme", "support", seed=1)
    limit(world, max_concurrency=1)
    connection = send_chat(world, stream=True, max_tokens=1500)
    response = connection.getresponse()
    response.readline()
    world.close_gate()
    assert world.ask().status_code == 429
    world.open_gate()
    response.read()
    connection.close()
    wait_until(lambda: world.ask().status_code == 200)


def test_a_failed_request_gives_its_place_back(world: World) -> None:
    limit(world, max_concurrency=1)
    for _ in range(3):
        assert world.ask("nobody").status_code == 404
        assert world.ask(max_tokens=10**6).status_code == 400
    assert world.ask().status_code == 200


def test_a_body_that_never_comes_holds_its_place_until_its_client_goes(world: World) -> None:
    limit(world, max_concurrency=1)
    connection = http.client.HTTPConnection(world.live.base_url.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", "/v1/chat/completions")
    for name, value in {
        "authorization": f"Bearer {world.keys['acme']}",
        "content-type": "application/json",
        "content-length": "100",
        "expect": "100-continue",
    }.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.sock.recv(100).startswith(b"HTTP/1.1 100 ")  # it was let in, and its body is waited for
    assert world.ask().status_code == 429
    hang_up(connection)
    wait_until(lambda: world.ask().status_code == 200)


def test_a_month_that_is_used_up_is_429_until_it_ends(make_world: Callable[..., World]) -> None:
    world = make_world(ledger_seconds=0.05)
    limit(world, monthly_tokens=20)
    assert world.ask(max_tokens=18).status_code == 200
    refused = world.ask()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "monthly_quota_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 31 * 86400
    assert world.ask(key="zoo").status_code == 200
    limit(world, monthly_tokens=21)
    assert world.ask(max_tokens=1).status_code == 200
    assert world.ask().status_code == 429


def test_what_the_limits_refuse_is_in_the_metrics(world: World) -> None:
    limit(world, requests_per_minute=0)
    body = json.loads(world.ask().content)
    assert body["error"]["code"] == "rate_limit_exceeded"
    refused = 'lorikeet_requests_total{adapter="",outcome="refused",tenant="acme",version=""}'
    wait_until(lambda: world.metric(refused) == 1)


def test_what_the_engine_refuses_says_what_is_left_and_what_was_ignored(world: World) -> None:
    world.publish("acme", "support", seed=1)
    limit(world, requests_per_minute=2)
    answer = world.ask("support", max_tokens=10**6, foo=1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert answer.headers["x-ratelimit-remaining-requests"] == "1"
    assert answer.headers["x-lorikeet-ignored"] == "foo"


# --- counting


def test_a_tenant_has_few_places_to_count_and_leaves_others_theirs() -> None:
    counts = Counts()
    with ExitStack() as held:
        for _ in range(COUNTS_OF_ONE):
            held.enter_context(counts.admitted("acme"))
        with pytest.raises(RateLimitedError) as caught:
            held.enter_context(counts.admitted("acme"))
        assert (caught.value.code, caught.value.headers) == ("concurrency_limit_exceeded", {"retry-after": "1"})
        held.enter_context(counts.admitted("zoo"))
    with counts.admitted("acme"):
        pass


def test_no_more_count_than_there_are_places() -> None:
    counts = Counts()
    with ExitStack() as held:
        for index in range(COUNTS_AT_ONCE):
            held.enter_context(counts.admitted(f"tenant-{index}"))
        with pytest.raises(OverloadedError) as caught:
            held.enter_context(counts.admitted("another"))
        assert caught.value.headers == {"retry-after": "1"}
    with counts.admitted("another"):
        pass


def test_who_counts_too_much_at_once_is_429_before_its_body_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, body = "/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "hi"}]}
    with world.client() as client:
        assert client.post(path, json=body).status_code == 200
        monkeypatch.setattr("server.admission.COUNTS_OF_ONE", 0)
        answer = client.post(path, content=b"{" * 500_000)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert world.ask().status_code == 200
