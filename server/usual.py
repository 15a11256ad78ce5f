"""What each tenant has lately had in hand at once: room that others leave it while it asks for less than its share.

Without that a tenant that floods the queue has every place whenever another's request comes, which then waits for an
answer to end: fair in tokens, and yet many times slower to begin than if it were alone. The room is a part of the
places, however many tenants there are: whoever floods has the rest.
"""

from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass
from math import ceil
from typing import Final

HALF_LIFE_SECONDS: Final = 20.0
"""In which half of the room for a tenant that has stopped to ask is given up."""
FORGOTTEN: Final = 0.5
"""Of a sequence."""
AHEAD: Final = 1
"""For the next one, beside what a tenant had at its peak."""
PART: Final = 5
"""A fifth of the places lies beyond the engine's batch; a fifth at most is kept in the batch besides."""
SWEEP_SECONDS: Final = 1.0


@dataclass(slots=True)
class _Peak:
    """Of one tenant."""

    sequences: float
    at: float
    weight: int

    def now(self, now: float) -> float:
        return self.sequences * float(0.5 ** ((now - self.at) / HALF_LIFE_SECONDS))


class Usual:
    """All tenants'. `capacity` is in sequences."""

    def __init__(self, capacity: int, clock: Callable[[], float]) -> None:
        self._capacity = capacity
        self._clock = clock
        self._in_hand: Counter[str] = Counter()
        self._peaks: dict[str, _Peak] = {}
        self._weights = 0
        self._swept_at = clock()

    def __len__(self) -> int:
        """Tenants that are remembered."""
        return len(self._peaks)

    def begin(self, tenant: str, sequences: int, weight: int) -> None:
        """So many more are in hand."""
        self._in_hand[tenant] += sequences
        self._note(tenant, weight)

    def end(self, tenant: str, sequences: int, weight: int) -> None:
        """So many fewer are."""
        self._note(tenant, weight)
        self._in_hand[tenant] -= sequences
        if not self._in_hand[tenant]:
            del self._in_hand[tenant]

    def is_beyond_share(self, tenant: str, sequences: int, weight: int) -> bool:
        """Whether a tenant has more than its share of the places, once it takes so many more: its first are not."""
        has = self._in_hand.get(tenant, 0)
        others = self._weights - (self._peaks[tenant].weight if tenant in self._peaks else 0)
        return has > 0 and has + sequences > ceil(self._capacity * weight / (weight + others))

    def kept(self, waiting: Container[str]) -> int:
        """How many places stay free of those beyond their share. For the `waiting` none: their turn comes in its order.

        Two of PART's at most: one in the batch, and the one beyond it, which would come before whoever comes.
        """
        now = self._clock()
        self._sweep(now)
        most, kept = self._capacity // PART, 0.0
        place = self._capacity / max(1, self._weights)
        for name, peak in self._peaks.items():
            if name not in waiting:
                kept += max(0, min(peak.now(now) + AHEAD, place * peak.weight) - self._in_hand.get(name, 0))
            if kept >= most:
                break
        return min(ceil(kept), most) + most if kept else 0

    def _note(self, tenant: str, weight: int) -> None:
        now, has = self._clock(), self._in_hand[tenant]
        peak = self._peaks.get(tenant)
        self._weights += weight - (peak.weight if peak else 0)
        self._peaks[tenant] = _Peak(max(has, peak.now(now)) if peak else has, now, weight)

    def _sweep(self, now: float) -> None:
        if now - self._swept_at < SWEEP_SECONDS:
            return
        self._swept_at = now
        gone = [name for name, peak in self._peaks.items() if name not in self._in_hand and peak.now(now) < FORGOTTEN]
        for name in gone:
            self._weights -= self._peaks.pop(name).weight
