"""Many more adapters than slots and places at once: each is answered by itself; and what lies where is told."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.administering import read
from tests.server.test_hang_ups import hang_up, send_chat
from tests.server.world import World, wait_until


@pytest.fixture
def database() -> str:
    """It plays no part."""
    return "sqlite"


pytestmark = pytest.mark.parametrize("database", ["sqlite"])

ADAPTERS = 60
REQUESTS = 200


def test_sixty_adapters_on_two_slots_answer_two_hundred_requests_each_with_its_own_words(
    make_world: Callable[..., World],
) -> None:
    world = make_world(max_loras=2, max_cpu_loras=8, max_num_queued_reqs=REQUESTS, queue_timeout_seconds=120)
    for number in range(ADAPTERS):
        world.publish("acme" if number % 2 else "zoo", f"a-{number}", seed=number)

    def ask(number: int) -> tuple[str, str]:
        adapter = number % ADAPTERS
        tenant = "acme" if adapter % 2 else "zoo"
        body = {"messages": [{"role": "user", "content": "hi"}], "adapter": f"a-{adapter}"}
        answer = clients[tenant].post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        (mark,) = world.marks(answer.json()["choices"][0]["message"]["content"])
        return f"{tenant}/a-{adapter}", mark

    with world.client("acme") as acme, world.client("zoo") as zoo, ThreadPoolExecutor(REQUESTS // 2) as pool:
        clients = {"acme": acme, "zoo": zoo}
        answers = Counter(pool.map(ask, range(REQUESTS)))
    assert len({adapter for adapter, _ in answers}) == len({mark for _, mark in answers}) == len(answers) == ADAPTERS
    assert set(world.residency().values()) == {0}
    loads, failures = (world.metric(f"lorikeet_residency_{name}_total") for name in ("loads", "load_failures"))
    assert (loads, failures) == (len(world.engine.loads), 0)
    assert world.metric("lorikeet_residency_hits_total") + world.metric("lorikeet_residency_misses_total") == REQUESTS
    evicted = 'lorikeet_residency_evictions_total{reason="room",tier="host"}'
    assert world.metric(evicted) == loads - len(world.residency())


def test_what_lies_in_which_tier_is_told(make_world: Callable[..., World]) -> None:
    world = make_world(max_loras=1, max_cpu_loras=4)
    sizes = {
        f"{name}@1": world.publish("acme", name, seed=seed).manifest.size_bytes
        for seed, name in enumerate(("idle", "support", "sales"), 1)
    }
    assert world.ask("idle").status_code == 200
    world.close_gate()
    holder = send_chat(world, stream=True)
    wait_until(lambda: world.residency().get("acme/support@1") == 1)
    waiter = send_chat(world, adapter="sales", stream=True)
    wait_until(lambda: len(world.residency()) == 3)
    wait_until(lambda: all(one["is_loaded"] for one in read(world, "/admin/v1/residency", "platform")["data"]))
    told = read(world, "/admin/v1/residency", "platform")
    found = {f"{one['adapter']}@{one['version']}": one for one in told["data"]}
    assert {name: one["tier"] for name, one in found.items()} == {
        "idle@1": "host",
        "support@1": "slot",
        "sales@1": "host",
    }
    assert {name: one["size_bytes"] for name, one in found.items()} == sizes
    assert found["idle@1"]["unused_seconds"] > found["support@1"]["unused_seconds"] == 0
    assert found["sales@1"]["unused_seconds"] is None
    assert told["tiers"] == {
        "slots": {"used": 1, "of": 1},
        "host": {"used": 3, "of": 3, "bytes": sum(sizes.values())},
        "disk": {"bytes": sum(sizes.values()), "of": None},
    }
    for connection in (holder, waiter):
        hang_up(connection)
