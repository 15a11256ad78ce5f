"""Many tenants on one engine of a fixed pace: told by counts, for a test's machine says nothing by its clock."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.server.world import World, wait_until


@pytest.fixture
def database() -> str:
    """It plays no part."""
    return "sqlite"


pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def crowd() -> Iterator[ThreadPoolExecutor]:
    """Forty clients."""
    with ThreadPoolExecutor(40) as pool:
        yield pool


def waiting(world: World) -> float:
    return world.metric("lorikeet_queue_requests")


def test_a_noisy_tenant_does_not_push_back_another(make_world: Callable[..., World], crowd: ThreadPoolExecutor) -> None:
    world = make_world(max_num_seqs=4, max_num_queued_reqs=100)
    order: list[str] = []

    def ask(key: str) -> None:
        assert world.ask(key=key, max_tokens=2).status_code == 200
        order.append(key)

    world.close_gate()
    noisy = [crowd.submit(ask, "acme") for _ in range(30)]
    wait_until(lambda: waiting(world) == 25)
    quiet = [crowd.submit(ask, "zoo") for _ in range(3)]
    wait_until(lambda: waiting(world) == 28)
    world.open_gate()
    for asked in (*noisy, *quiet):
        asked.result(30)
    assert max(place for place, key in enumerate(order) if key == "zoo") < 20


def test_in_an_overload_the_places_stay_full_and_every_refusal_says_when_to_come_back(
    make_world: Callable[..., World], crowd: ThreadPoolExecutor
) -> None:
    world = make_world(max_num_seqs=4, max_num_queued_reqs=5)

    def ask(_: int) -> httpx.Response:
        return world.ask(max_tokens=2)

    world.close_gate()
    asked = [crowd.submit(ask, number) for number in range(40)]
    wait_until(lambda: sum(one.done() for one in asked) == 30)
    assert (world.metric("lorikeet_sequences "), waiting(world)) == (5, 5)
    world.open_gate()
    answers = [one.result(30) for one in asked]
    assert Counter(answer.status_code for answer in answers) == {200: 10, 503: 30}
    refused = [answer for answer in answers if answer.status_code == 503]
    assert {answer.json()["error"]["code"] for answer in refused} == {"server_overloaded"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert world.metric('lorikeet_rejections_total{reason="server_overloaded"}') == 30
    assert (world.metric("lorikeet_sequences "), waiting(world)) == (0, 0)


def test_more_adapters_than_slots_are_all_answered(make_world: Callable[..., World], crowd: ThreadPoolExecutor) -> None:
    world = make_world(max_num_seqs=4, max_num_queued_reqs=100, max_loras=1, max_cpu_loras=3)
    for number in range(5):
        world.publish("acme", f"adapter-{number}", seed=number)

    def ask(number: int) -> int:
        return world.ask(f"adapter-{number % 5}", max_tokens=2).status_code

    assert set(crowd.map(ask, range(30))) == {200}


def test_what_a_request_is_likely_to_take_is_reserved_before_it_begins(
    make_world: Callable[..., World], crowd: ThreadPoolExecutor
) -> None:
    world = make_world()
    with world.client("platform") as client:
        limited = client.patch("/admin/v1/tenants/acme", json={"limits": {"tokens_per_minute": 100}})
        assert limited.status_code == 200, limited.text
    world.close_gate()
    first = crowd.submit(world.ask, max_tokens=40)
    wait_until(lambda: world.metric("lorikeet_sequences ") == 1)
    refused = world.ask(max_tokens=40)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(refused.headers["retry-after"]) >= 1
    world.open_gate()
    assert first.result(30).status_code == 200
