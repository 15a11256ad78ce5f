"""A pinned adapter is resident, whoever else needs the room; and pins leave room for the others."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.server.administering import call, read
from tests.server.world import OPERATOR, World, wait_until

PINS = "/admin/v1/tenants/acme/adapters/{}/pin"


def pin(world: World, adapter: str = "support", method: str = "PUT") -> Any:
    return call(world, method, PINS.format(adapter), "platform")


def pinned(world: World) -> dict[str, bool]:
    """What is resident → whether it is pinned."""
    residents = read(world, "/admin/v1/residency", "platform")["data"]
    return {f"{one['adapter']}@{one['version']}": one["is_pinned"] for one in residents if one["is_loaded"]}


def test_what_is_pinned_is_loaded_at_once_and_stays_when_others_need_the_room(world: World) -> None:
    world.publish("acme", "support", seed=1)
    for seed in range(2, 7):
        world.publish("zoo", f"other-{seed}", seed=seed)
    answer = pin(world)
    assert (answer.status_code, answer.json()["is_pinned"]) == (200, True)
    wait_until(lambda: pinned(world) == {"support@1": True})
    for seed in range(2, 7):
        assert world.ask(f"other-{seed}", key="zoo").status_code == 200
    assert pinned(world)["support@1"]
    assert world.engine.loads.count(f"acme/support@1#{version_id(world, 1)}") == 1


def test_after_a_promote_the_new_version_has_the_pin_and_after_a_roll_back_the_old_one(world: World) -> None:
    for seed in (1, 2):
        world.publish("acme", "support", seed=seed, promote=seed == 1)
    pin(world)
    wait_until(lambda: pinned(world) == {"support@1": True})
    live = "/admin/v1/tenants/acme/adapters/support/aliases/live"
    assert call(world, "PUT", live, json={"version": 2}).status_code == 200
    wait_until(lambda: pinned(world) == {"support@1": False, "support@2": True})
    assert call(world, "POST", "/admin/v1/tenants/acme/adapters/support/rollback").status_code == 200
    wait_until(lambda: pinned(world) == {"support@1": True, "support@2": False})


def test_every_arm_of_a_split_is_kept(make_world: Callable[..., World]) -> None:
    world = make_world(max_cpu_loras=5)
    for seed in (1, 2):
        world.publish("acme", "support", seed=seed)
    live = "/admin/v1/tenants/acme/adapters/support/aliases/live"
    arms = [{"version": number, "weight": 1} for number in (1, 2)]
    assert call(world, "PUT", live, json={"split": arms}).status_code == 200
    assert pin(world).status_code == 200
    wait_until(lambda: pinned(world) == {"support@1": True, "support@2": True})


def test_pins_leave_a_place_for_each_slot_and_one(world: World) -> None:
    for seed, adapter in enumerate(("support", "sales", "draft"), 1):
        world.publish("acme", adapter, seed=seed, promote=adapter != "draft")
    assert pin(world).status_code == 200
    refused = pin(world, "sales")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_room_to_pin")
    assert "1 of them" in refused.json()["error"]["message"]
    assert pin(world).status_code == pin(world, "draft").status_code == 200  # what is pinned, and what takes no place
    assert pin(world, "support", "DELETE").json()["is_pinned"] is False
    assert pin(world, "sales").status_code == 200


def test_more_pins_than_there_is_room_for_take_no_more_than_that(world: World) -> None:
    for seed, adapter in enumerate(("sales", "support"), 1):
        world.publish("acme", adapter, seed=seed)
        world.registry.adapters.pin(OPERATOR, "acme", adapter)
    pin(world)  # which has a running server look
    wait_until(lambda: pinned(world) == {"sales@1": True})
    assert world.ask("support").status_code == 200
    assert pinned(world) == {"sales@1": True, "support@1": False}


def test_what_is_pinned_and_was_never_probed_waits_for_its_first_request(world: World) -> None:
    world.publish("acme", "support", seed=1, is_probed=False)
    pin(world)
    assert pinned(world) == {}
    assert world.ask("support").status_code == 200
    wait_until(lambda: pinned(world) == {"support@1": True})


def test_a_pin_whose_version_cannot_be_loaded_is_no_failure(world: World) -> None:
    world.publish("acme", "support", seed=1)
    world.engine.refuses_loads = True
    assert pin(world).status_code == 200
    world.engine.refuses_loads = False
    assert world.ask("support").status_code == 200
    wait_until(lambda: pinned(world) == {"support@1": True})


def test_listings_say_what_is_pinned(world: World) -> None:
    for seed, adapter in enumerate(("sales", "support"), 1):
        world.publish("acme", adapter, seed=seed)
    pin(world)
    listed = read(world, "/admin/v1/tenants/acme/adapters")["data"]
    assert {one["name"]: one["is_pinned"] for one in listed} == {"sales": False, "support": True}


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_an_adapter_that_is_not_there_is_not_found(world: World, method: str) -> None:
    answer = pin(world, "nothing", method)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "adapter_not_found")


def version_id(world: World, number: int) -> int:
    return world.registry.versions.get(OPERATOR, "acme", "support", number).id
