"""Which adapters are resident and who is using them.

Invariant: never unloaded while a lease is open. Loads are single-flight by key, and a load never delays a lease of
another key that is resident. Belongs to one event loop: between two awaits nothing else runs, so there are no locks
save the queue for room.

Knows neither tenants nor files: what loads an adapter is passed in, what it is called is in its labels.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from server.engine.protocol import Engine, LoadedAdapter
from server.errors import AdapterLoadingError
from server.metrics import Labels

Value = TypeVar("Value")
Load = Callable[[], Awaitable[LoadedAdapter]]
"""Loads one adapter into the engine; where it raises, nothing of it is left there."""


class Resident(NamedTuple):
    """A line of the snapshot."""

    key: str
    labels: Labels
    leases: int
    is_loaded: bool


@dataclass(slots=True, eq=False)
class _Entry:
    key: str
    labels: Labels
    loading: "asyncio.Future[LoadedAdapter]" = field(init=False)
    leases: int = 0
    """Open leases and those that still wait for the load: both hold it here."""
    is_doomed: bool = False

    @property
    def is_loaded(self) -> bool:
        return self.loading.done()  # a failed load leaves the table before its future is done

    @property
    def is_idle(self) -> bool:
        return self.is_loaded and not self.leases


class Residency:
    """The adapters in host RAM: loaded when leased; unloaded when room is needed, least recently used first."""

    def __init__(self, engine: Engine, *, host_slots: int, load_timeout_seconds: float) -> None:
        self._engine = engine
        self._capacity = max(1, host_slots - 1)  # the spare place keeps vLLM's own eviction from ever running
        self._load_timeout_seconds = load_timeout_seconds
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently leased first
        self._taken = 0  # places in host RAM: loading, loaded, or being unloaded
        self._queue_for_room = asyncio.Lock()  # fair: first come, first served
        self._something_left = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def lease(self, key: str, labels: Labels, load: Load) -> AsyncIterator[LoadedAdapter]:
        """Hold the adapter `key` in the engine, loaded with `load` if it is not there.

        Raises:
            AdapterLoadingError: it was not loaded in time, or every place is held by others. The load itself goes on
                while anybody waits for it.
            Exception: whatever `load` raised; all who waited get it, and the next lease starts afresh.
        """
        entry = self._entries.get(key) or self._begin(key, labels, load)
        self._entries.move_to_end(key)
        entry.leases += 1
        try:
            yield await self._loaded(entry)
        finally:
            entry.leases -= 1
            self._let_go(entry)

    async def drop(self, key: str) -> None:
        """Unload the adapter: now if it is idle, else when its last lease ends. No such key is no error."""
        entry = self._entries.get(key)
        if entry is None:
            return
        entry.is_doomed = True
        if entry.is_idle:
            await asyncio.shield(self._evict(entry))

    def snapshot(self) -> list[Resident]:
        """Who is here and who holds it, least recently used first."""
        return [Resident(entry.key, entry.labels, entry.leases, entry.is_loaded) for entry in self._entries.values()]

    async def close(self) -> None:
        """Stop the loads that run. Nothing is unloaded: the engine goes next."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- loading

    def _begin(self, key: str, labels: Labels, load: Load) -> _Entry:
        entry = self._entries[key] = _Entry(key, labels)
        entry.loading = self._start(self._load(entry, load))
        entry.loading.add_done_callback(lambda _loading: self._let_go(entry))
        return entry

    async def _load(self, entry: _Entry, load: Load) -> LoadedAdapter:
        try:
            await self._take_room(entry)
            try:
                return await load()
            except BaseException:
                self._leave_room()
                raise
        except BaseException:
            del self._entries[entry.key]
            raise

    async def _loaded(self, entry: _Entry) -> LoadedAdapter:
        try:
            async with asyncio.timeout(self._load_timeout_seconds):
                return await asyncio.shield(entry.loading)  # the load is everybody's: no waiter cancels it
        except TimeoutError as error:
            raise AdapterLoadingError("The adapter is still being loaded, or has to wait for room.") from error

    # --- room

    async def _take_room(self, entry: _Entry) -> None:
        async with self._queue_for_room:
            while self._taken >= self._capacity:
                if not entry.leases:  # all who waited have left
                    raise AdapterLoadingError("Nobody waits for this adapter any more.")
                idle = next((other for other in self._entries.values() if other.is_idle), None)
                if idle is not None:
                    await self._evict(idle)
                else:
                    self._something_left.clear()
                    await self._something_left.wait()
            self._taken += 1

    def _leave_room(self) -> None:
        self._taken -= 1
        self._something_left.set()

    def _let_go(self, entry: _Entry) -> None:
        """After each change that may have made `entry` idle: a lease ended, or the load did."""
        self._something_left.set()
        if entry.is_loaded and not entry.loading.cancelled():
            entry.loading.exception()  # read here, in case nobody waits for it any more
        if entry.is_doomed and entry.is_idle and self._entries.get(entry.key) is entry:
            self._evict(entry)

    def _evict(self, entry: _Entry) -> "asyncio.Task[None]":
        del self._entries[entry.key]  # at once: from here on a lease of this key loads anew
        return self._start(self._unload(entry))

    async def _unload(self, entry: _Entry) -> None:
        try:
            await self._engine.unload(entry.loading.result())
        finally:
            self._leave_room()

    def _start(self, work: Coroutine[Any, Any, Value]) -> "asyncio.Task[Value]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
