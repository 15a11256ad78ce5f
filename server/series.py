"""The numbers of each label set, and which sets have numbers of their own: so many in all, and so many of a tenant.

A set that finds no place is counted with its tenant's others, as `(tenant, other, other)`; and once there is no place
in all, tenants without any share `(other, other, other)`. A place is given up by what had no traffic for IDLE_SECONDS,
the longest idle first, and only when another set needs it: so the busy ones show. Its numbers are gone then, and begin
at 0 if it comes back: Prometheus takes that for a restart.

Invariants: never more than `most` sets, nor `most_of_one` of a tenant; no set that had traffic loses its place, so that
no tenant takes another's.

Belongs to one event loop; any thread may read.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

OTHER: Final = "other"
IDLE_SECONDS: Final = 3600.0
"""After which a set's place is another's who needs it."""
FEW_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Buckets of every latency histogram."""

LabelSet = tuple[str, ...]
"""The tenant first."""


@dataclass(slots=True)
class Spread:
    """A histogram: how many fell into each of FEW_SECONDS' buckets, the last beyond them; and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(FEW_SECONDS) + 1))
    seconds: float = 0.0

    def observe(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(FEW_SECONDS, seconds)] += 1
        self.seconds += seconds


@dataclass(slots=True)
class Series:
    """Of one label set. Plain numbers, since they are counted up with each token."""

    labels: LabelSet
    used_at: float
    """When it last had traffic: whoever counts says so, too."""
    is_shown: bool = True
    """Whether it has its place still: else `LabelSets.find` it again."""
    requests: Counter[str] = field(default_factory=Counter)
    """By outcome."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Those among the prompt's that the prefix cache had."""
    first_token: Spread = field(default_factory=Spread)
    between_tokens: Spread = field(default_factory=Spread)
    request: Spread = field(default_factory=Spread)


class LabelSets:
    """All the sets that show. `forget` is told which set has lost its place, and whether its tenant has none left."""

    def __init__(
        self,
        *,
        most: int,
        most_of_one: int,
        clock: Callable[[], float] = monotonic,
        forget: Callable[[LabelSet, bool], None] = lambda _labels, _is_last: None,
    ) -> None:
        self._most = most - 1  # one is nobody's
        self._most_of_one = most_of_one
        self._clock = clock
        self._forget = forget
        self._tenants: dict[str, dict[LabelSet, Series]] = {}
        self._count = 0
        self._nobodys: Series | None = None
        self._full_until = 0.0

    def all(self) -> list[Series]:
        """Those that show now."""
        nobodys = [self._nobodys] if self._nobodys else []
        return [series for own in list(self._tenants.values()) for series in list(own.values())] + nobodys

    def find(self, labels: LabelSet) -> Series:
        """Where to count the traffic of `labels`: its own numbers, or those of its tenant's others, or nobody's."""
        series = self._tenants.get(labels[0], {}).get(labels) or self._enter(labels, may_drop=True)
        series.used_at = self._clock()
        return series

    def peek(self, labels: LabelSet) -> Series:
        """The same for what is no traffic: nobody loses a place for it, and none is kept by it."""
        return self._tenants.get(labels[0], {}).get(labels) or self._enter(labels, may_drop=False)

    def _enter(self, labels: LabelSet, *, may_drop: bool) -> Series:
        own = self._tenants.get(labels[0], {})
        shared = _others(labels[0], labels)
        # A tenant's first set brings the one that its others will share: nobody can take that place later.
        new = [each for each in dict.fromkeys((shared, labels)) if each not in own]
        if len(own) + len(new) > self._most_of_one and not (may_drop and self._drop_of(own)):
            return own[shared]
        if self._count + len(new) > self._most and not (may_drop and self._drop_for(len(new))):
            return own[shared] if shared in own else self._of_nobody(labels)
        own = self._tenants.setdefault(labels[0], {})
        for each in new:
            own[each] = Series(each, self._clock())
        self._count += len(new)
        return own[labels]

    def _of_nobody(self, labels: LabelSet) -> Series:
        if self._nobodys is None:
            self._nobodys = Series(_others(OTHER, labels), 0.0)
        return self._nobodys

    def _drop_of(self, own: dict[LabelSet, Series]) -> bool:
        """One of a tenant's, if one has been idle for long enough."""
        oldest = min(_droppable([own]), key=_used_at)
        is_idle = oldest.used_at <= self._clock() - IDLE_SECONDS
        if is_idle:
            self._drop(oldest)
        return is_idle

    def _drop_for(self, count: int) -> bool:
        """As many of anybody's as it takes to make room for `count`, if so many have been idle for long enough."""
        now = self._clock()
        while self._count + count > self._most:
            if now < self._full_until:
                return False
            oldest = min(_droppable(self._tenants.values()), key=_used_at, default=None)
            if oldest is None or oldest.used_at > now - IDLE_SECONDS:
                # Until then nobody looks again: thousands of tenants may be asking.
                self._full_until = (oldest.used_at if oldest else now) + IDLE_SECONDS
                return False
            self._drop(oldest)
        return True

    def _drop(self, series: Series) -> None:
        tenant = series.labels[0]
        own = self._tenants[tenant]
        del own[series.labels]
        series.is_shown = False
        self._count -= 1
        if not own:
            del self._tenants[tenant]
        self._forget(series.labels, not own)


def _others(tenant: str, labels: LabelSet) -> LabelSet:
    """What the sets of a tenant share that have no place of their own."""
    return (tenant, *[OTHER] * (len(labels) - 1))


def _droppable(tenants: Iterable[dict[LabelSet, Series]]) -> Iterable[Series]:
    """What a tenant's others share goes last: it is needed for as long as the tenant has anything."""
    return (
        series
        for own in tenants
        for labels, series in own.items()
        if len(own) == 1 or labels != _others(labels[0], labels)
    )


def _used_at(series: Series) -> float:
    return series.used_at
