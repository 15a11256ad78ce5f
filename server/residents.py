"""What residency keeps in its table: an adapter and how it is loaded, who holds it, and who waits for it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

from server.engine.protocol import LoadedAdapter
from server.metrics import Labels
from server.residency_series import Cause

Load = Callable[[], Awaitable[LoadedAdapter]]
"""Loads one adapter into the engine; where it raises, nothing of it is left there."""


@dataclass(frozen=True, slots=True)
class Loadable:
    """An adapter, and how it is loaded."""

    key: str
    labels: Labels
    load: Load
    size_bytes: int = 0
    within: Callable[[], AbstractAsyncContextManager[object]] = nullcontext
    """Held while it loads, and from before it takes a place: whoever held a place and waited for another's slot could
    wait for one that waits for its place."""


class Resident(NamedTuple):
    """A line of the snapshot."""

    key: str
    labels: Labels
    leases: int
    is_loaded: bool
    is_pinned: bool
    size_bytes: int
    name: str | None
    """What the engine calls it, once it is loaded."""
    unused_seconds: float | None
    """Since its last lease ended: 0 while it has one, None if it has had none."""


@dataclass(slots=True, eq=False)
class Entry:
    """An adapter that is loading or loaded."""

    adapter: Loadable
    cause: Cause
    loading: "asyncio.Future[LoadedAdapter]" = field(init=False)
    leases: int = 0
    """Open leases and those that still wait for the load: both hold it here."""
    has_place: bool = False
    is_doomed: bool = False
    used_at: float | None = None

    @property
    def key(self) -> str:
        """The adapter's."""
        return self.adapter.key

    @property
    def is_loaded(self) -> bool:
        """Whether it can be leased without waiting."""
        return self.loading.done()  # a failed load leaves the table before its future is done

    @property
    def is_idle(self) -> bool:
        """Whether it may be unloaded."""
        return self.is_loaded and not self.leases

    def told(self, now: float, *, is_pinned: bool) -> Resident:
        """For the snapshot."""
        return Resident(
            key=self.key,
            labels=self.adapter.labels,
            leases=self.leases,
            is_loaded=self.is_loaded,
            is_pinned=is_pinned,
            size_bytes=self.adapter.size_bytes,
            name=self.loading.result().name if self.is_loaded else None,
            unused_seconds=0.0 if self.leases else None if self.used_at is None else now - self.used_at,
        )


@dataclass(slots=True, eq=False)
class Wish:
    """What requests in the queue wait for."""

    adapter: Loadable
    is_tried: bool
    """Whether a load was begun for it, or may not be: then it waits for its lease."""
    waiting: int = 0
