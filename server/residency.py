"""Which adapters are resident, who is using them, and who is about to.

Invariants: never unloaded while a lease is open; never, to make room, while it is pinned. Loads are single-flight by
key, and a load never delays a lease of another key that is resident. What requests in the queue wait for is loaded
ahead, and gives way to nothing but a lease that finds no other room; together with what is pinned it takes only the
places that those who have their turn leave over. Belongs to one event loop: between two awaits nothing else runs, so
there are no locks save the queue for room.

Knows neither tenants nor files: what loads an adapter is passed in, what it is called is in its labels.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import monotonic
from typing import Any, Final, TypeVar

from server.engine.protocol import Engine, LoadedAdapter
from server.errors import AdapterLoadingError
from server.residency_series import Cause, Eviction, ResidencySeries
from server.residents import Entry, Loadable, Resident, Wish

Value = TypeVar("Value")
AHEAD_AT_ONCE: Final = 2
"""Loads of what nobody has a turn for yet: an engine loads one after the other, and reads the next one's files."""
CLOSE_SECONDS: Final = 5.0
"""For loads to stop at the end: an engine that hangs may not let them."""


class Residency:
    """The adapters in host RAM: loaded when leased or waited for; the least recently used goes when room is needed."""

    def __init__(
        self,
        engine: Engine,
        series: ResidencySeries,
        *,
        slots: int,
        host_slots: int,
        load_timeout_seconds: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._engine = engine
        self._series = series
        self.capacity: Final = max(1, host_slots - 1)
        """Places: the spare one keeps vLLM's own eviction from ever running."""
        self._slots = slots
        self._kept_places = self.capacity - slots  # for what is pinned or loaded ahead: the rest is for the leases
        self._load_timeout_seconds = load_timeout_seconds
        self._clock = clock
        self._entries: OrderedDict[str, Entry] = OrderedDict()  # least recently leased first
        self._wishes: OrderedDict[str, Wish] = OrderedDict()  # who has waited longest first
        self._later: deque[Loadable] = deque()
        self._pinned: frozenset[str] = frozenset()
        self._queue_for_room = asyncio.Lock()  # fair: first come, first served
        self._something_left = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.places = 0
        """Places that are taken: by what is loading, loaded or being unloaded."""

    @asynccontextmanager
    async def lease(self, adapter: Loadable) -> AsyncIterator[LoadedAdapter]:
        """Hold the adapter in the engine, loaded if it is not there.

        Raises:
            AdapterLoadingError: it was not loaded in time, or every place is held by others. The load itself goes on
                while anybody waits for it.
            Exception: whatever its `load` raised; all who waited get it, and the next lease starts afresh.
        """
        entry = self._entries.get(adapter.key) or self._begin(adapter, Cause.LEASE)
        (self._series.hits if entry.is_loaded else self._series.misses).inc()
        self._entries.move_to_end(entry.key)
        entry.leases += 1
        try:
            yield await self._loaded(entry)
        finally:
            entry.leases -= 1
            entry.used_at = self._clock()
            self._let_go(entry)

    @contextmanager
    def expected(self, adapter: Loadable, *, may_load: bool) -> Iterator[None]:
        """Say, during the block, that a request in the queue waits for it: it stays, and is loaded ahead if it may be.

        Nothing waits for this, and nothing fails with it: what was not loaded ahead waits for its lease.
        """
        wish = self._wishes.setdefault(adapter.key, Wish(adapter, is_tried=not may_load))
        wish.waiting += 1
        self._load_ahead()
        try:
            yield
        finally:
            wish.waiting -= 1
            if not wish.waiting:
                del self._wishes[adapter.key]
                self._something_left.set()
                self._load_ahead()

    def warm(self, adapters: Iterable[Loadable]) -> None:
        """Load these one by one, the most recently used first, as long as places are free and nothing else loads."""
        self._later.extend(adapters)
        self._load_ahead()

    def pin(self, keys: Collection[str]) -> None:
        """Keep these, and no others, when room is needed. Nothing is loaded for it."""
        self._pinned = frozenset(keys)
        self._something_left.set()
        self._load_ahead()

    async def drop(self, key: str) -> None:
        """Unload the adapter: now if it is idle, else when its last lease ends. No such key is no error."""
        entry = self._entries.get(key)
        if entry is None:
            return
        entry.is_doomed = True
        if entry.is_idle:
            await asyncio.shield(self._evict(entry, Eviction.DROPPED))

    def snapshot(self) -> list[Resident]:
        """Who is here and who holds it, least recently used first."""
        now = self._clock()
        return [entry.told(now, is_pinned=entry.key in self._pinned) for entry in self._entries.values()]

    def show(self, *, in_slots: int) -> None:
        """Set the gauges. `in_slots`: how many have a slot."""
        self._series.show_places("slots", in_slots, self._slots)
        self._series.show_places("host", self.places, self.capacity)
        loaded = (entry.adapter.size_bytes for entry in self._entries.values() if entry.is_loaded)
        self._series.bytes.labels("host").set(sum(loaded))

    async def close(self) -> None:
        """Stop the loads that run, in CLOSE_SECONDS. Nothing is unloaded: the engine goes next."""
        self._later.clear()
        for wish in self._wishes.values():
            wish.is_tried = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)

    # --- loading

    def _begin(self, adapter: Loadable, cause: Cause) -> Entry:
        entry = self._entries[adapter.key] = Entry(adapter, cause)
        entry.loading = self._start(self._load(entry))
        entry.loading.add_done_callback(lambda _loading: self._let_go(entry))
        return entry

    async def _load(self, entry: Entry) -> LoadedAdapter:
        try:
            async with entry.adapter.within():
                await self._take_room(entry)
                loaded = await entry.adapter.load()
        except BaseException as error:
            del self._entries[entry.key]
            if entry.has_place:
                self._leave_room()
            if isinstance(error, Exception) and entry.has_place:
                self._series.load_failures.inc()
            raise
        self._series.loads.labels(entry.cause.value).inc()
        return loaded

    async def _loaded(self, entry: Entry) -> LoadedAdapter:
        try:
            async with asyncio.timeout(self._load_timeout_seconds):
                return await asyncio.shield(entry.loading)  # the load is everybody's: no waiter cancels it
        except TimeoutError as error:
            raise AdapterLoadingError("The adapter is still being loaded, or has to wait for room.") from error

    def _load_ahead(self) -> None:
        """Begin what nobody has a turn for yet: for the queue, and when that has all it can have, what was warm."""
        ahead = [entry for entry in self._entries.values() if not entry.is_loaded and entry.cause is not Cause.LEASE]
        in_flight = len(ahead)
        while in_flight < AHEAD_AT_ONCE and self._has_room_ahead() and (wish := self._next_wish()) is not None:
            wish.is_tried = True
            self._begin(wish.adapter, Cause.QUEUE)
            in_flight += 1
        if self.places >= self.capacity:
            self._later.clear()  # the rest is loaded when it is asked
        while self._later and all(entry.is_loaded for entry in self._entries.values()):
            adapter = self._later.popleft()
            if adapter.key not in self._entries:
                self._begin(adapter, Cause.WARM_UP)
                self._entries.move_to_end(adapter.key, last=False)  # those that come later were used before it

    def _next_wish(self) -> Wish | None:
        wishes = self._wishes.values()
        return next((wish for wish in wishes if not wish.is_tried and wish.adapter.key not in self._entries), None)

    # --- room

    def _is_kept(self, key: str) -> bool:
        return key in self._pinned or key in self._wishes

    def _has_room_ahead(self) -> bool:
        """Whether one more may be loaded ahead, beside those that have no place yet."""
        entries = self._entries.values()
        if sum(not entry.leases and self._is_kept(entry.key) for entry in entries) >= self._kept_places:
            return False
        coming = sum(not entry.has_place for entry in entries)
        going = sum(entry.is_idle and not self._is_kept(entry.key) for entry in entries)
        return self.places + coming < self.capacity + going

    async def _take_room(self, entry: Entry) -> None:
        async with self._queue_for_room:
            while self.places >= self.capacity:
                victim = self._victim(entry)
                if victim is not None:
                    await self._evict(victim, Eviction.ROOM)
                elif entry.leases:
                    self._something_left.clear()
                    await self._something_left.wait()
                else:  # all who waited have left, or it was to be loaded ahead, and there is no room for that any more
                    raise AdapterLoadingError("Nobody waits for this adapter any more.")
            self.places += 1
            entry.has_place = True

    def _victim(self, entry: Entry) -> Entry | None:
        """What gives way to this one: the least recently used, then what the last in the queue waits for."""
        idle = {other.key: other for other in self._entries.values() if other.is_idle and other.key not in self._pinned}
        unwanted = next((other for other in idle.values() if other.key not in self._wishes), None)
        if not entry.leases:
            return unwanted if entry.key in self._wishes else None
        return unwanted or next((idle[key] for key in reversed(self._wishes) if key in idle), None)

    def _leave_room(self) -> None:
        self.places -= 1
        self._something_left.set()

    def _let_go(self, entry: Entry) -> None:
        """After each change that may have made `entry` idle: a lease ended, or the load did."""
        self._something_left.set()
        if entry.is_loaded and not entry.loading.cancelled():
            entry.loading.exception()  # read here, in case nobody waits for it any more
        if entry.is_doomed and entry.is_idle and self._entries.get(entry.key) is entry:
            self._evict(entry, Eviction.DROPPED)
        self._load_ahead()

    def _evict(self, entry: Entry, reason: Eviction) -> "asyncio.Task[None]":
        del self._entries[entry.key]  # at once: from here on a lease of this key loads anew
        self._series.evictions.labels("host", reason.value).inc()
        return self._start(self._unload(entry))

    async def _unload(self, entry: Entry) -> None:
        try:
            await self._engine.unload(entry.loading.result())
        finally:
            self._leave_room()

    def _start(self, work: Coroutine[Any, Any, Value]) -> "asyncio.Task[Value]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
