"""After a restart, what was resident is resident again: nobody waits for it, and nothing fails with it."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp

from server.app import create_app
from server.engine.fake import FakeEngine
from server.engine.protocol import EngineDeadError, LoadedAdapter
from tests.live_server import LiveServer
from tests.server.world import OPERATOR, World, make_settings, wait_until


@pytest.fixture
def database() -> str:
    """It plays no part."""
    return "sqlite"


pytestmark = pytest.mark.parametrize("database", ["sqlite"])

Restart = Callable[..., World]


@pytest.fixture
def restart() -> Iterator[Restart]:
    """Stop a server, and start another in its home; `refuses_loads`: its engine does, while it starts."""
    with ExitStack() as opened:

        def restarted(world: World, *, refuses_loads: bool = False, **overrides: Any) -> World:
            world.live.__exit__(None, None, None)
            settings = make_settings(**overrides)
            engine = FakeEngine(world.base.name, slots=settings.max_loras, host_slots=settings.max_cpu_loras)
            engine.refuses_loads = refuses_loads

            def make_app() -> ASGIApp:
                return create_app(settings, world.registry, engine, base=world.base, secret=b"secret" * 6)

            return replace(world, engine=engine, live=opened.enter_context(LiveServer(make_app)))

        yield restarted


def remembered(world: World) -> Path:
    return world.registry.home / "residency.json"


def ask_all(world: World, *adapters: str) -> None:
    for adapter in adapters:
        assert world.ask(adapter).status_code == 200


def publish_three(world: World) -> None:
    for seed, adapter in enumerate(("sales", "support", "triage"), 1):
        world.publish("acme", adapter, seed=seed)


def test_what_was_resident_is_loaded_again_in_the_order_of_its_last_use(world: World, restart: Restart) -> None:
    publish_three(world)
    ask_all(world, "sales", "support", "triage", "sales")
    before = list(world.residency())
    again = restart(world)
    wait_until(lambda: list(again.residency()) == before)
    assert before == ["acme/support@1", "acme/triage@1", "acme/sales@1"]


def test_with_less_room_those_that_were_used_last_are_loaded(world: World, restart: Restart) -> None:
    publish_three(world)
    ask_all(world, "sales", "support", "triage")
    again = restart(world, max_loras=1, max_cpu_loras=3)
    wait_until(lambda: list(again.residency()) == ["acme/support@1", "acme/triage@1"])


def test_what_is_pinned_is_there_when_the_server_is_ready(world: World, restart: Restart) -> None:
    publish_three(world)
    world.registry.adapters.pin(OPERATOR, "acme", "triage")
    again = restart(world)
    assert again.residency() == {"acme/triage@1": 0}
    assert again.metric('lorikeet_residency_places{state="used",tier="host"}') == 1


def test_what_can_no_longer_be_served_is_passed_over(world: World, restart: Restart) -> None:
    publish_three(world)
    ask_all(world, "sales", "support")
    world.registry.aliases.remove(OPERATOR, "acme", "support", "live")
    world.registry.versions.retire(OPERATOR, "acme", "support", 1)
    again = restart(world)
    wait_until(lambda: again.residency() == {"acme/sales@1": 0})


def test_nothing_is_probed_and_nothing_recorded_for_it(world: World, restart: Restart) -> None:
    world.publish("acme", "support", seed=1, is_probed=False)
    world.publish("acme", "sales", seed=2)
    remembered(world).write_text(json.dumps({"residents": ["acme/support@1", "acme/sales@1"]}))
    world.live.__exit__(None, None, None)
    remembered(world).write_text(json.dumps({"residents": ["acme/support@1", "acme/sales@1"]}))
    rows = world.registry.audit(OPERATOR, limit=1000)
    again = restart(world)
    wait_until(lambda: again.residency() == {"acme/sales@1": 0})
    assert again.registry.versions.get(OPERATOR, "acme", "support", 1).state == "unprobed"
    assert again.registry.audit(OPERATOR, limit=1000) == rows


def test_an_engine_that_refuses_them_starts_all_the_same(world: World, restart: Restart) -> None:
    publish_three(world)
    world.registry.adapters.pin(OPERATOR, "acme", "triage")
    ask_all(world, "sales")
    again = restart(world, refuses_loads=True)
    wait_until(lambda: again.residency() == {})
    again.engine.refuses_loads = False
    ask_all(again, "sales", "triage")


async def die(engine: FakeEngine, *_: object) -> None:
    engine.kill()
    raise EngineDeadError("it died of it")


async def hang(engine: FakeEngine, *_: object) -> None:
    engine.halt()
    await engine._moves.wait()


@pytest.mark.parametrize("load", [die, hang])
def test_a_pinned_adapter_that_the_engine_is_lost_over_ends_the_start(
    world: World, restart: Restart, monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any]
) -> None:
    publish_three(world)
    world.registry.adapters.pin(OPERATOR, "acme", "triage")
    monkeypatch.setattr(FakeEngine, "load", load)
    with pytest.raises(SystemExit):
        restart(world)


def test_what_the_engine_may_have_been_lost_over_is_not_loaded_again(
    world: World, restart: Restart, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish_three(world)
    ask_all(world, "sales", "support")
    loading = FakeEngine.load

    async def die_of_the_second(engine: FakeEngine, name: str, path: Path) -> LoadedAdapter:
        if engine.loaded:
            await die(engine)
        return await loading(engine, name, path)

    monkeypatch.setattr(FakeEngine, "load", die_of_the_second)
    again = restart(world)
    wait_until(lambda: "engine lost" in caplog.text)
    again.live.__exit__(None, None, None)
    assert json.loads(remembered(world).read_text()) == {"residents": ["acme/support@1"]}


@pytest.mark.parametrize(
    "content",
    [
        *("", "null", "[]", "{", '{"residents": 5}', '{"residents": [1, null, "", "a/b@x", "../x@1", "acme/none@1"]}'),
        '{"residents": ["acme/sales@live", "sales@1", "acme/sales@99999999999999999999"]}',
        "[" * 100_000,
    ],
)
def test_a_broken_memory_is_no_error(world: World, restart: Restart, content: str) -> None:
    publish_three(world)
    world.live.__exit__(None, None, None)
    remembered(world).write_text(content)
    again = restart(world)
    assert again.residency() == {}
    ask_all(again, "sales")


def test_it_is_written_down_while_the_server_runs(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.warm_up.EVERY_SECONDS", 0.05)
    world = make_world()
    publish_three(world)
    ask_all(world, "support")
    wait_until(lambda: remembered(world).exists())
    assert json.loads(remembered(world).read_text()) == {"residents": ["acme/support@1"]}
