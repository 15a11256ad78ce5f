"""Which adapters are resident: held to its promises over schedules that hypothesis draws."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.fake import FakeEngine
from server.engine.protocol import AdapterRejectedError, Health, LoadedAdapter
from server.errors import AdapterLoadingError
from server.metrics import Labels
from server.residency import Residency

LABELS = Labels("acme", "support", "1")


class StagedEngine(FakeEngine):
    """Loads without files, in as many turns of the loop as a test says; knows who is using what."""

    def __init__(self, *, host_slots: int, turns: int = 1) -> None:
        super().__init__(host_slots=host_slots)
        self.turns = turns
        self.failing: set[str] = set()
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.most_loaded = 0
        self.in_use: Counter[int] = Counter()

    async def load(self, name: str, path: Path) -> LoadedAdapter:
        int_id = next(self._ids)
        await self.may_load.wait()
        for _ in range(self.turns):
            await asyncio.sleep(0)
        if name in self.failing:
            raise AdapterRejectedError(name)
        self.loads.append(name)
        self.loaded[int_id] = LoadedAdapter(name, int_id, path)
        self.most_loaded = max(self.most_loaded, len(self.loaded))
        return self.loaded[int_id]

    async def unload(self, adapter: LoadedAdapter) -> None:
        assert not self.in_use[adapter.int_id], "unloaded while leased"
        for _ in range(self.turns):
            await asyncio.sleep(0)
        assert not self.in_use[adapter.int_id], "leased while being unloaded"
        del self.loaded[adapter.int_id]


@dataclass(frozen=True)
class Visit:
    """One request: comes after some turns of the loop, holds for some, and may be cancelled after some."""

    key: int
    arrives: int
    holds: int
    leaves: int | None
    drops: bool


VISITS = st.builds(
    Visit,
    key=st.integers(0, 5),
    arrives=st.integers(0, 12),
    holds=st.integers(0, 6),
    leaves=st.none() | st.integers(0, 12),
    drops=st.booleans(),
)


def residency_of(engine: StagedEngine, load_timeout_seconds: float = 30) -> Residency:
    return Residency(engine, host_slots=engine.info.host_slots, load_timeout_seconds=load_timeout_seconds)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(claim: Callable[[], bool], deadline_seconds: float = 10) -> None:
    async with asyncio.timeout(deadline_seconds):
        while not claim():  # noqa: ASYNC110  — the claim is about the loop's next turns
            await asyncio.sleep(0)


@settings(max_examples=300)
@given(
    visits=st.lists(VISITS, max_size=14),
    host_slots=st.integers(1, 4),
    engine_turns=st.integers(0, 4),
    failing=st.sets(st.integers(0, 5), max_size=2),
)
def test_an_adapter_is_never_unloaded_while_leased_and_nothing_leaks(
    visits: list[Visit], host_slots: int, engine_turns: int, failing: set[int]
) -> None:
    async def story() -> None:
        engine = StagedEngine(host_slots=host_slots, turns=engine_turns)
        engine.failing = {str(key) for key in failing}
        residency = residency_of(engine)
        async with asyncio.timeout(20):
            tasks = [asyncio.create_task(_visit(residency, engine, plan)) for plan in visits]
            leaving = [
                asyncio.create_task(_leave(task, plan.leaves))
                for task, plan in zip(tasks, visits, strict=True)
                if plan.leaves is not None
            ]
            await asyncio.gather(*leaving)
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results), results
        await until(lambda: all(resident.is_loaded for resident in residency.snapshot()))
        assert engine.most_loaded <= max(1, host_slots - 1)
        for key in range(6):
            await residency.drop(str(key))
        await until(lambda: not engine.loaded)
        assert residency.snapshot() == []
        await residency.close()

    asyncio.run(story())


def run(story: Callable[[StagedEngine], Awaitable[None]], *, host_slots: int = 3) -> None:
    async def whole() -> None:
        async with asyncio.timeout(20):
            await story(StagedEngine(host_slots=host_slots))

    asyncio.run(whole())


def test_requests_for_one_cold_adapter_share_one_load() -> None:
    async def story(engine: StagedEngine) -> None:
        residency = residency_of(engine)

        async def ask() -> int:
            async with residency.lease("a", LABELS, partial(engine.load, "a", Path())) as adapter:
                return adapter.int_id

        assert len(set(await asyncio.gather(*(ask() for _ in range(5))))) == 1
        assert engine.loads == ["a"]

    run(story)


def test_a_load_that_hangs_does_not_delay_a_resident_adapter() -> None:
    async def story(engine: StagedEngine) -> None:
        residency = residency_of(engine)
        async with residency.lease("hot", LABELS, partial(engine.load, "hot", Path())):
            pass
        engine.may_load.clear()
        cold = asyncio.create_task(_hold(residency, engine, "cold"))
        await turns(3)
        async with residency.lease("hot", LABELS, partial(engine.load, "hot", Path())) as adapter:
            assert adapter.name == "hot"
        assert not cold.done()
        engine.may_load.set()
        await cold

    run(story)


def test_a_waiter_that_leaves_does_not_take_the_load_with_it() -> None:
    async def story(engine: StagedEngine) -> None:
        residency = residency_of(engine)
        engine.may_load.clear()
        leaver, stayer = (asyncio.create_task(_hold(residency, engine, "a")) for _ in range(2))
        await turns(3)
        leaver.cancel()
        engine.may_load.set()
        await stayer
        assert leaver.cancelled()
        assert engine.loads == ["a"]
        assert [resident.leases for resident in residency.snapshot()] == [0]

    run(story)


def test_a_failed_load_is_told_to_all_who_waited_and_the_next_one_starts_afresh() -> None:
    async def story(engine: StagedEngine) -> None:
        residency = residency_of(engine)
        engine.failing = {"a"}
        results = await asyncio.gather(*(_hold(residency, engine, "a") for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [AdapterRejectedError] * 3
        assert residency.snapshot() == []
        engine.failing.clear()
        await _hold(residency, engine, "a")
        assert engine.loads == ["a"]

    run(story)


def test_when_every_place_is_held_a_request_is_told_to_come_back() -> None:
    async def story(engine: StagedEngine) -> None:
        residency = residency_of(engine, load_timeout_seconds=0.02)
        async with (
            residency.lease("a", LABELS, partial(engine.load, "a", Path())),
            residency.lease("b", LABELS, partial(engine.load, "b", Path())),
        ):
            with pytest.raises(AdapterLoadingError):
                await _hold(residency, engine, "c")
            await until(lambda: {resident.key for resident in residency.snapshot()} == {"a", "b"})
        await _hold(residency, engine, "c")
        assert {resident.key for resident in residency.snapshot()} == {"b", "c"}, "the least recently used one went"

    run(story)


def test_a_load_that_nobody_waits_for_any_more_still_makes_room_for_the_next() -> None:
    async def story(engine: StagedEngine) -> None:
        residency = residency_of(engine)
        engine.may_load.clear()
        leaver = asyncio.create_task(_hold(residency, engine, "a"))
        await turns(3)
        leaver.cancel()
        next_one = asyncio.create_task(_hold(residency, engine, "b"))
        await turns(3)
        engine.may_load.set()
        await next_one
        assert engine.most_loaded == 1

    run(story, host_slots=2)


def test_the_fake_engine_dies_when_a_running_request_loses_its_adapter(adapter_folder: Path) -> None:
    async def story() -> None:
        engine = FakeEngine()
        await engine.start()
        adapter = await engine.load("a", adapter_folder)
        await engine.unload(adapter)
        with pytest.raises(Exception, match="not loaded"):
            await engine.sample("hello", adapter, max_tokens=1)
        assert engine.health() is Health.DEAD

    asyncio.run(story())


async def _hold(residency: Residency, engine: StagedEngine, key: str) -> None:
    async with residency.lease(key, LABELS, partial(engine.load, key, Path())):
        await turns(2)


async def _visit(residency: Residency, engine: StagedEngine, plan: Visit) -> None:
    await turns(plan.arrives)
    try:
        async with residency.lease(str(plan.key), LABELS, partial(engine.load, str(plan.key), Path())) as adapter:
            assert adapter.name == str(plan.key)
            engine.in_use[adapter.int_id] += 1
            try:
                await turns(plan.holds)
                if plan.drops:
                    await residency.drop(str(plan.key))
                assert adapter.int_id in engine.loaded
            finally:
                engine.in_use[adapter.int_id] -= 1
    except AdapterRejectedError:
        assert str(plan.key) in engine.failing


async def _leave(task: "asyncio.Task[None]", after: int) -> None:
    await turns(after)
    task.cancel()
