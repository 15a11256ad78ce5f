"""A shadow gets a copy of an alias's traffic, and nobody's answer knows."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from adapters import ConflictError, InvalidError, NotFoundError, Shadow
from server.engine.fake import FakeEngine
from server.engine.protocol import LoadedAdapter
from server.errors import DrainingError
from server.in_flight import InFlight
from server.shadow import _Copy
from tests.server.world import OPERATOR, World, in_thread, wait_until


@pytest.fixture
def database() -> str:
    """It plays no part."""
    return "sqlite"


SHADOW = "/admin/v1/tenants/acme/adapters/support/aliases/live/shadow"
NAMES = ("ok", "refused", "failed", "dropped", "cut")


@pytest.fixture
def shadowed(world: World) -> World:
    """Version 1 answers, and version 2 gets a copy of all."""
    world.publish("acme", "support", seed=1)
    world.publish("acme", "support", seed=2, promote=False)
    world.registry.aliases.shadow(OPERATOR, "acme", "support", Shadow(2, 100))
    return world


def shadow_metric(world: World, name: str, version: int = 2, **labels: str) -> float:
    """prometheus_client writes labels by their names."""
    said = {"adapter": "support", "tenant": "acme", "version": str(version), **labels}
    line = ",".join(f'{label}="{said[label]}"' for label in sorted(said))
    return world.metric(f"lorikeet_shadow_{name}{{{line}}}")


def outcomes(world: World, version: int = 2) -> dict[str, float]:
    counted = {name: shadow_metric(world, "requests_total", version, outcome=name) for name in NAMES}
    return {name: count for name, count in counted.items() if count}


def is_idle(world: World) -> bool:
    return set(world.residency().values()) <= {0}


def said(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"], answer.json()["usage"], answer.json()["model"]


def test_a_shadow_gets_a_copy_and_the_answer_is_the_same(shadowed: World) -> None:
    with_shadow = shadowed.ask("support")
    wait_until(lambda: outcomes(shadowed) == {"ok": 1})
    shadowed.registry.aliases.shadow(OPERATOR, "acme", "support", None)
    assert said(shadowed.ask("support")) == said(with_shadow)
    assert with_shadow.headers["x-lorikeet-adapter"] == "acme/support@1"
    wait_until(lambda: is_idle(shadowed))
    assert outcomes(shadowed) == {"ok": 1}


def test_a_stream_is_copied_without_its_stream(shadowed: World) -> None:
    assert "data: [DONE]" in shadowed.ask("support", stream=True, stream_options={"include_usage": True}).text
    wait_until(lambda: outcomes(shadowed) == {"ok": 1})
    copies = [body for body in shadowed.engine.seen_bodies if "stream" not in body]
    assert len(copies) == 1
    assert "stream_options" not in copies[0]


def test_a_copy_counts_in_series_of_its_own_and_in_no_bill(shadowed: World) -> None:
    usage = shadowed.ask("support").json()["usage"]
    wait_until(lambda: outcomes(shadowed) == {"ok": 1})
    assert shadow_metric(shadowed, "tokens_total", kind="completion") > 0
    assert shadow_metric(shadowed, "request_seconds_count") == 1
    copied = 'lorikeet_requests_total{adapter="support",outcome="ok",tenant="acme",version="2"}'
    own = 'lorikeet_tokens_total{adapter="support",kind="completion",tenant="acme",version="1"}'
    assert shadowed.metric(copied) == 0
    assert shadowed.metric(own) == usage["completion_tokens"]


def test_without_spare_room_there_is_no_copy(make_world: Callable[..., World]) -> None:
    world = make_world(max_num_seqs=1)
    world.publish("acme", "support", seed=1)
    world.publish("acme", "support", seed=2, promote=False)
    world.registry.aliases.shadow(OPERATOR, "acme", "support", Shadow(2, 100))
    world.ask("support")
    assert outcomes(world) == {"dropped": 1}
    assert "acme/support@2" not in world.residency()


def test_without_a_free_slot_there_is_no_copy(make_world: Callable[..., World]) -> None:
    world = make_world(max_loras=1)
    world.publish("acme", "support", seed=1)
    world.publish("acme", "support", seed=2, promote=False)
    world.registry.aliases.shadow(OPERATOR, "acme", "support", Shadow(2, 100))
    world.close_gate()
    answer = in_thread(lambda: world.ask("support"))
    wait_until(lambda: outcomes(world) == {"dropped": 1})
    world.open_gate()
    assert answer().status_code == 200


def test_several_choices_are_not_copied(shadowed: World) -> None:
    assert shadowed.ask("support", n=2).status_code == 200
    assert outcomes(shadowed) == {}


def test_a_share_of_the_requests_is_copied(shadowed: World) -> None:
    shadowed.registry.aliases.shadow(OPERATOR, "acme", "support", Shadow(2, 50))
    asked = 40
    for _ in range(asked):
        shadowed.ask("support", max_tokens=1)
    copied = sum(outcomes(shadowed).values())
    assert 5 <= copied <= 35


def test_a_shadow_that_can_not_be_loaded_is_only_counted(shadowed: World) -> None:
    assert shadowed.ask("support").status_code == 200
    wait_until(lambda: outcomes(shadowed) == {"ok": 1})
    wait_until(lambda: is_idle(shadowed))
    unloadable = shadowed.publish("acme", "support", seed=3, promote=False).number
    shadowed.registry.aliases.shadow(OPERATOR, "acme", "support", Shadow(unloadable, 100))
    shadowed.engine.refuses_loads = True
    assert shadowed.ask("support").headers["x-lorikeet-adapter"] == "acme/support@1"
    wait_until(lambda: bool(outcomes(shadowed, unloadable)))
    assert outcomes(shadowed, unloadable) == {"failed": 1}


def test_a_copy_gives_way_to_whoever_has_to_wait(make_world: Callable[..., World]) -> None:
    world = make_world(max_loras=2)
    for seed, adapter in ((1, "support"), (3, "sales")):
        world.publish("acme", adapter, seed=seed)
    world.publish("acme", "support", seed=2, promote=False)
    world.registry.aliases.shadow(OPERATOR, "acme", "support", Shadow(2, 100))
    world.close_gate()
    first = in_thread(lambda: world.ask("support"))
    wait_until(lambda: world.residency().get("acme/support@2") == 1)
    second = in_thread(lambda: world.ask("sales"))
    wait_until(lambda: outcomes(world) == {"cut": 1})
    world.open_gate()
    assert {first().status_code, second().status_code} == {200}
    wait_until(lambda: is_idle(world))


def test_a_copy_ends_with_the_server(shadowed: World) -> None:
    shadowed.close_gate()
    answer = in_thread(lambda: shadowed.ask("support"))
    wait_until(lambda: shadowed.residency().get("acme/support@2") == 1)
    shadowed.open_gate()
    assert answer().status_code == 200


def test_a_shadow_is_set_shown_and_ended_over_http(shadowed: World) -> None:
    with shadowed.client("acme-admin") as admin:
        assert admin.put(SHADOW, json={"version": 2, "percent": 5}).json()["shadow"] == {"version": 2, "percent": 5}
        aliases = admin.get("/admin/v1/tenants/acme/adapters/support").json()["aliases"]
        assert [alias["shadow"] for alias in aliases] == [{"version": 2, "percent": 5}]
        assert admin.request("DELETE", SHADOW).json()["shadow"] is None
        assert admin.put(SHADOW, json={"version": 2, "percent": 0}).status_code == 400
        assert admin.put(SHADOW, json={"version": 9}).status_code == 404
        assert admin.put(SHADOW.replace("live", "canary"), json={"version": 2}).status_code == 404


def test_a_version_that_shadows_is_not_retired(shadowed: World) -> None:
    versions, aliases = shadowed.registry.versions, shadowed.registry.aliases
    with pytest.raises(ConflictError, match="shadows live"):
        versions.retire(OPERATOR, "acme", "support", 2)
    aliases.shadow(OPERATOR, "acme", "support", None)
    versions.retire(OPERATOR, "acme", "support", 2)
    with pytest.raises(ConflictError) as refused:
        aliases.shadow(OPERATOR, "acme", "support", Shadow(2, 100))
    assert refused.value.code == "version_not_ready"


def test_a_shadow_stays_as_its_alias_moves_and_goes_with_it(shadowed: World) -> None:
    aliases = shadowed.registry.aliases
    assert aliases.promote(OPERATOR, "acme", "support", 2).shadow == Shadow(2, 100)
    assert aliases.rollback(OPERATOR, "acme", "support").shadow == Shadow(2, 100)
    aliases.remove(OPERATOR, "acme", "support", "live")
    assert aliases.promote(OPERATOR, "acme", "support", 1).shadow is None


@pytest.mark.parametrize("wrong", [Shadow(2, 0), Shadow(2, 101), Shadow(0, 101)])
def test_a_shadow_that_is_none_is_refused(shadowed: World, wrong: Shadow) -> None:
    with pytest.raises(InvalidError):
        shadowed.registry.aliases.shadow(OPERATOR, "acme", "support", wrong)


def test_a_shadow_of_nothing_is_refused(shadowed: World) -> None:
    with pytest.raises(NotFoundError):
        shadowed.registry.aliases.shadow(OPERATOR, "acme", "support", Shadow(9, 1))


def test_a_copy_that_is_cut_holds_its_lease_until_the_engine_has_let_go() -> None:
    seen: list[str] = []
    begun = asyncio.Event()

    class Slow(FakeEngine):
        def __init__(self) -> None:
            super().__init__()
            self.asgi = self.answer

        async def answer(self, _scope: Scope, receive: Receive, _send: Send) -> None:
            while (await receive())["type"] != "http.disconnect":
                begun.set()
            for _ in range(10):
                await asyncio.sleep(0)
            seen.append("the engine has let go")

    async def story() -> None:
        in_flight = InFlight()

        async def copied() -> None:
            with suppress(DrainingError), in_flight.until_ended():
                try:
                    await _Copy({}, b"").ask(Slow(), LoadedAdapter("one", 1, Path()), "acme/support@1")
                finally:
                    seen.append("given back")

        copying = asyncio.create_task(copied())
        await begun.wait()
        in_flight.cut()
        await copying

    asyncio.run(story())
    assert seen == ["the engine has let go", "given back"]
