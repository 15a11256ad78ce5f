"""Which adapters hold the engine's slots, and since when the others that are wanted have had none.

A slot is held by turns: from an adapter's first to the end of its last. Knows neither tenants nor places.
"""

from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Final

STARVED_SECONDS: Final = 2.0
"""How long an adapter goes without a slot before others give way."""


class Slots:
    """`count` adapters at once. None is the base, which needs no slot."""

    def __init__(self, count: int, clock: Callable[[], float]) -> None:
        self._count = count
        self._clock = clock
        self._turns: Counter[str] = Counter()
        self._wanted: Counter[str] = Counter()
        self._without: dict[str, float] = {}
        """Since when each that is wanted has had no slot; who waits longest is first."""
        self._starved: dict[str, float] = {}
        """Those that were in there for too long."""

    @property
    def held(self) -> AbstractSet[str]:
        """The adapters that have one."""
        return self._turns.keys()

    @property
    def is_one_free(self) -> bool:
        """Whether any adapter can have one."""
        return len(self._turns) < self._count

    def can_take(self, adapter: str | None) -> bool:
        """Whether it has one, needs none, or can have one."""
        return adapter is None or adapter in self._turns or self.is_one_free

    def starved(self) -> AbstractSet[str]:
        """Those that have waited for too long."""
        latest = self._clock() - STARVED_SECONDS
        while self._without and self._without[next(iter(self._without))] <= latest:
            adapter = next(iter(self._without))
            self._starved[adapter] = self._without.pop(adapter)
        return self._starved.keys()

    def want(self, adapter: str | None) -> None:
        """A request for it waits."""
        if adapter is not None:
            self._wanted[adapter] += 1
            self._note(adapter)

    def forgo(self, adapter: str | None) -> None:
        """A request for it waits no more."""
        if adapter is not None:
            _drop(self._wanted, adapter)
            self._note(adapter)

    def take(self, adapter: str | None) -> None:
        """A turn for it begins."""
        if adapter is not None:
            self._turns[adapter] += 1
            self._note(adapter)

    def give_back(self, adapter: str | None) -> None:
        """A turn for it has ended."""
        if adapter is not None:
            _drop(self._turns, adapter)
            self._note(adapter)

    def _note(self, adapter: str) -> None:
        if adapter in self._turns or adapter not in self._wanted:
            self._without.pop(adapter, None)
            self._starved.pop(adapter, None)
        elif adapter not in self._without and adapter not in self._starved:
            self._without[adapter] = self._clock()


def _drop(counts: Counter[str], adapter: str) -> None:
    counts[adapter] -= 1
    if not counts[adapter]:
        del counts[adapter]
