"""Which adapters are resident: held to its promises over schedules that hypothesis draws."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from server.engine.fake import FakeEngine
from server.engine.protocol import AdapterRejectedError, Health, LoadedAdapter
from server.errors import AdapterLoadingError
from server.metrics import Labels
from server.residency import AHEAD_AT_ONCE, Residency
from server.residency_series import ResidencySeries
from server.residents import Loadable

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
        self.loading: Counter[str] = Counter()
        self.kept: frozenset[str] = frozenset()
        """What is pinned, and was not dropped."""

    async def load(self, name: str, path: Path) -> LoadedAdapter:
        int_id = next(self._ids)
        self.loading[name] += 1
        assert self.loading[name] == 1, "loaded twice at once"
        try:
            await self.may_load.wait()
            await turns(self.turns)
        finally:
            self.loading[name] -= 1
        if name in self.failing:
            raise AdapterRejectedError(name)
        self.loads.append(name)
        self.loaded[int_id] = LoadedAdapter(name, int_id, path)
        self.most_loaded = max(self.most_loaded, len(self.loaded))
        return self.loaded[int_id]

    async def unload(self, adapter: LoadedAdapter) -> None:
        assert not self.in_use[adapter.int_id], "unloaded while leased"
        assert adapter.name not in self.kept, "unloaded while pinned"
        for _ in range(self.turns):
            await asyncio.sleep(0)
        assert not self.in_use[adapter.int_id], "leased while being unloaded"
        del self.loaded[adapter.int_id]


@dataclass(frozen=True)
class Visit:
    """One request: comes after some turns of the loop, is queued for some, holds for some, and may be cancelled."""

    key: int
    arrives: int
    waits: int
    holds: int
    leaves: int | None
    drops: bool


VISITS = st.builds(
    Visit,
    key=st.integers(0, 5),
    arrives=st.integers(0, 12),
    waits=st.integers(0, 8),
    holds=st.integers(0, 6),
    leaves=st.none() | st.integers(0, 12),
    drops=st.booleans(),
)


def residency_of(engine: StagedEngine, load_timeout_seconds: float = 30, *, slots: int = 1) -> Residency:
    return Residency(
        engine,
        ResidencySeries(CollectorRegistry()),
        slots=slots,
        host_slots=engine.info.host_slots,
        load_timeout_seconds=load_timeout_seconds,
    )


def loadable(engine: StagedEngine, key: str) -> Loadable:
    return Loadable(key, LABELS, partial(engine.load, key, Path()), size_bytes=10)


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
    pinned=st.sets(st.integers(0, 5), max_size=2),
    warm=st.lists(st.integers(0, 5), max_size=6),
)
def test_an_adapter_is_never_unloaded_while_leased_or_pinned_and_nothing_leaks(
    visits: list[Visit], host_slots: int, engine_turns: int, failing: set[int], pinned: set[int], warm: list[int]
) -> None:
    async def story() -> None:
        engine = StagedEngine(host_slots=host_slots, turns=engine_turns)
        engine.failing = {str(key) for key in failing}
        residency = residency_of(engine)
        engine.kept = frozenset(str(key) for key in sorted(pinned)[: max(0, host_slots - 2)])
        residency.pin(engine.kept)
        residency.warm([loadable(engine, str(key)) for key in warm])
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
        await until(lambda: residency.places == len(engine.loaded) == len(residency.snapshot()))
        await turns(20)
        assert residency.places == len(engine.loaded) == len(residency.snapshot())
        residency.pin(())
        engine.kept = frozenset()
        async with asyncio.timeout(20):
            while engine.loaded or residency.snapshot():
                for key in range(6):
                    await residency.drop(str(key))
                await turns(1)
        assert residency.places == 0
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
            async with residency.lease(loadable(engine, "a")) as adapter:
                return adapter.int_id

        assert len(set(await asyncio.gather(*(ask() for _ in range(5))))) == 1
        assert engine.loads == ["a"]

    run(story)


def test_a_load_that_hangs_does_not_delay_a_resident_adapter() -> None:
    async def story(engine: StagedEngine) -> None:
        residency = residency_of(engine)
        async with residency.lease(loadable(engine, "hot")):
            pass
        engine.may_load.clear()
        cold = asyncio.create_task(_hold(residency, engine, "cold"))
        await turns(3)
        async with residency.lease(loadable(engine, "hot")) as adapter:
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
            residency.lease(loadable(engine, "a")),
            residency.lease(loadable(engine, "b")),
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


def test_what_the_queue_waits_for_is_loaded_ahead_and_takes_the_room_of_what_nobody_wants() -> None:
    async def story(engine: StagedEngine) -> None:
        residency = residency_of(engine)
        for key in ("old", "newer", "newest"):
            await _hold(residency, engine, key)
        with waiting_for(residency, engine, "a"):
            await until(lambda: loaded(residency) == ["newer", "newest", "a"])
            with waiting_for(residency, engine, "b"):
                await until(lambda: loaded(residency) == ["newest", "a", "b"])
                async with residency.lease(loadable(engine, "a")):
                    pass
        assert engine.loads == ["old", "newer", "newest", "a", "b"], "and its lease found it there"

    run(story, host_slots=4)


def test_nothing_is_loaded_ahead_into_the_places_that_the_slots_need() -> None:
    async def story(engine: StagedEngine) -> None:
        residency = residency_of(engine, slots=2)
        with waiting_for(residency, engine, "a"), waiting_for(residency, engine, "b"):
            await turns(20)
            assert loaded(residency) == ["a"]
            await asyncio.gather(_hold(residency, engine, "c"), _hold(residency, engine, "d"))
            assert set(loaded(residency)) == {"a", "c", "d"}

    run(story, host_slots=4)


def test_who_has_left_the_queue_keeps_nothing() -> None:
    async def story(engine: StagedEngine) -> None:
        residency = residency_of(engine)
        with waiting_for(residency, engine, "a"):
            await until(lambda: loaded(residency) == ["a"])
        with waiting_for(residency, engine, "b"):
            await until(lambda: loaded(residency) == ["a", "b"])
            await _hold(residency, engine, "c")
            assert loaded(residency) == ["b", "c"]

    run(story)


def test_a_lease_that_finds_no_other_room_takes_that_of_the_last_in_the_queue() -> None:
    async def story(engine: StagedEngine) -> None:
        residency = residency_of(engine)
        for key in ("b", "a"):
            await _hold(residency, engine, key)
        with waiting_for(residency, engine, "a"), waiting_for(residency, engine, "b"):
            await _hold(residency, engine, "c")
            assert loaded(residency) == ["a", "c"]

    run(story)


def test_a_load_ahead_that_fails_is_left_to_the_lease() -> None:
    async def story(engine: StagedEngine) -> None:
        residency = residency_of(engine)
        engine.failing = {"a"}
        with waiting_for(residency, engine, "a"):
            await turns(20)
            assert residency.snapshot() == []
            engine.failing.clear()
            await _hold(residency, engine, "a")
        assert engine.loads == ["a"]

    run(story)


def test_a_thousand_cold_adapters_in_the_queue_are_loaded_once_each_and_few_at_a_time() -> None:
    async def story(engine: StagedEngine) -> None:
        residency = residency_of(engine, slots=2)
        slots = asyncio.Semaphore(2)  # first come, first served
        most_at_once = 0

        async def ask(key: str) -> None:
            nonlocal most_at_once
            with waiting_for(residency, engine, key):
                async with slots, residency.lease(loadable(engine, key)):
                    most_at_once = max(most_at_once, sum(engine.loading.values()))

        await asyncio.gather(*(ask(f"cold-{number}") for number in range(1000)))
        assert Counter(engine.loads) == Counter(f"cold-{number}" for number in range(1000))
        assert most_at_once <= 2 + AHEAD_AT_ONCE
        assert engine.most_loaded <= residency.capacity

    run(story, host_slots=8)


def test_what_is_pinned_stays_when_it_was_used_least_lately() -> None:
    async def story(engine: StagedEngine) -> None:
        residency = residency_of(engine)
        for key in ("a", "b"):
            await _hold(residency, engine, key)
        residency.pin({"a"})
        for key in ("c", "d"):
            await _hold(residency, engine, key)
        assert loaded(residency) == ["a", "d"]
        residency.pin(())
        await _hold(residency, engine, "e")
        assert loaded(residency) == ["d", "e"]

    run(story)


def test_what_was_warm_is_loaded_one_by_one_into_free_places_and_after_what_is_asked() -> None:
    async def story(engine: StagedEngine) -> None:
        residency = residency_of(engine)
        engine.may_load.clear()
        asked = asyncio.create_task(_hold(residency, engine, "asked"))
        await turns(3)
        residency.warm([loadable(engine, key) for key in ("asked", "first", "second", "third")])
        await turns(3)
        assert set(engine.loading.elements()) == {"asked"}
        engine.may_load.set()
        await asked
        await until(lambda: len(loaded(residency)) == 3)
        await turns(20)
        assert engine.loads == ["asked", "first", "second"]
        assert loaded(residency) == ["second", "first", "asked"], "who was used first is the most recent"

    run(story, host_slots=4)


def test_where_a_load_needs_a_slot_it_is_had_before_a_place() -> None:
    async def story(engine: StagedEngine) -> None:
        residency = residency_of(engine)
        slot = asyncio.Lock()
        await slot.acquire()
        unprobed = [
            Loadable(key, LABELS, partial(engine.load, key, Path()), within=lambda: slot) for key in ("a", "b", "c")
        ]
        probing = [asyncio.create_task(_hold_this(residency, each)) for each in unprobed]
        await turns(10)
        assert residency.places == 0
        await _hold(residency, engine, "d")
        slot.release()
        await asyncio.gather(*probing)

    run(story)


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


@contextmanager
def waiting_for(residency: Residency, engine: StagedEngine, key: str) -> Iterator[None]:
    with residency.expected(loadable(engine, key), may_load=True):
        yield


def loaded(residency: Residency) -> list[str]:
    return [resident.key for resident in residency.snapshot() if resident.is_loaded]


async def _hold_this(residency: Residency, adapter: Loadable) -> None:
    async with residency.lease(adapter):
        await turns(2)


async def _hold(residency: Residency, engine: StagedEngine, key: str) -> None:
    async with residency.lease(loadable(engine, key)):
        await turns(2)


async def _visit(residency: Residency, engine: StagedEngine, plan: Visit) -> None:
    await turns(plan.arrives)
    with residency.expected(loadable(engine, str(plan.key)), may_load=plan.waits > 0):
        await turns(plan.waits)
    try:
        async with residency.lease(loadable(engine, str(plan.key))) as adapter:
            assert adapter.name == str(plan.key)
            engine.in_use[adapter.int_id] += 1
            try:
                await turns(plan.holds)
                if plan.drops and str(plan.key) not in engine.kept:
                    await residency.drop(str(plan.key))
                assert adapter.int_id in engine.loaded
            finally:
                engine.in_use[adapter.int_id] -= 1
    except AdapterRejectedError:
        assert str(plan.key) in engine.failing


async def _leave(task: "asyncio.Task[None]", after: int) -> None:
    await turns(after)
    task.cancel()


def test_a_load_that_can_not_be_stopped_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.residency.CLOSE_SECONDS", 0.01)

    async def story() -> None:
        begun, never = asyncio.Event(), asyncio.Event()

        async def load() -> LoadedAdapter:
            begun.set()
            try:
                await never.wait()
            finally:
                await never.wait()
            raise AssertionError

        residency = Residency(
            FakeEngine(), ResidencySeries(CollectorRegistry()), slots=1, host_slots=4, load_timeout_seconds=30
        )
        residency.warm([Loadable("one", LABELS, load)])
        await begun.wait()
        async with asyncio.timeout(5):
            await residency.close()

    asyncio.run(story())
