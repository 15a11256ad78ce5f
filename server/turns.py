"""Whose turn it is: a fair queue in front of the engine, whose own queue it keeps short.

A turn is a place for a request's sequences and, where it asks an adapter, a slot for that. When there is not enough
for all:

- next is whoever was served least (server/shares.py); a tenant of a lower `priority` number goes before all others;
- who has more than its share of places leaves others what they lately had (server/usual.py);
- slots rotate: once an adapter has waited STARVED_SECONDS for one, those that hold them admit nothing new until it has
  its own. It waits so long, and as long as the longest answer in flight takes. A tenant that has a slot already gets
  others only from those that come after it: no number of adapters makes more of its share;
- the queue is bounded: by `max_queued`, and by what is likely to be served within half of `patience_seconds`. When it
  is full, a tenant with far more in it than the newcomer's gives way.

Belongs to one event loop: between two awaits nothing else runs, so there are no locks.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from functools import partial
from operator import attrgetter
from time import monotonic
from typing import Final

from server.errors import OverloadedError
from server.shares import LAST, Asker, Order, Share, Shares, Turn, Waiting
from server.slots import Slots
from server.usual import Usual

BATCHES: Final = 4
"""The server's pace is that of so many last batches."""
PACE_IS_KNOWN_AFTER: Final = 32
"""Turns that have ended while others waited."""
MAX_RETRY_SECONDS: Final = 30
AGAIN_SECONDS: Final = 1.0
"""In which somebody who is held back is looked at again, if nothing else happens."""
BASE: Final[frozenset[str | None]] = frozenset({None})
"""What needs no slot."""


class Turns:
    """`capacity` sequences and `slots` adapters at once; what comes beyond that waits here."""

    def __init__(
        self,
        *,
        capacity: int,
        slots: int,
        max_queued: int,
        patience_seconds: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._capacity = capacity
        self._max_queued = max_queued
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._shares = Shares()
        self._slots = Slots(slots, clock)
        self._usual = Usual(capacity, clock)
        self._probes: list[Waiting] = []
        self._again: asyncio.TimerHandle | None = None
        self._arrived = 0
        self._pace = 0.0  # seconds between the ends of two turns, while there is a queue
        self._paced = 0
        self._paced_at = clock()
        self.sequences = 0
        """Those that have their turn."""

    @property
    def capacity(self) -> int:
        """As many sequences may have their turn at once."""
        return self._capacity

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return self._shares.queued

    @property
    def holders(self) -> frozenset[str]:
        """The adapters that have a slot now."""
        return frozenset(self._slots.held)

    @property
    def has_spare_room(self) -> bool:
        """Whether half of the places are free and nobody waits: for what nobody is waiting for."""
        return not self.queued and 2 * self.sequences < self._capacity

    def check_room(self, asker: Asker) -> None:
        """Raise what `turn` would raise at once. Cheap: for before anything is known of a request but whose it is."""
        if self.queued >= self._room() and self._fullest(asker) is None:
            raise self._full()

    @asynccontextmanager
    async def turn(self, asker: Asker, *, on_wait: Callable[[], None] | None = None) -> AsyncIterator[Turn]:
        """Wait for a turn, and have it for as long as the block lasts. `on_wait` is called if it does not begin now.

        Raises:
            OverloadedError: `server_overloaded`: the queue is full, at once or when somebody with less in it came;
                `queue_timeout`: the patience has ended.
        """
        waiting = self._enter(asker)
        try:
            turn = waiting.place.result() if waiting.place.done() else await self._wait(waiting, on_wait)
        except BaseException:
            self._give_up(waiting)
            raise
        try:
            yield turn
        finally:
            self._end(turn)

    async def _wait(self, waiting: Waiting, on_wait: Callable[[], None] | None) -> Turn:
        if on_wait is not None:
            on_wait()
        try:
            async with asyncio.timeout(self._patience_seconds):
                return await asyncio.shield(waiting.place)
        except TimeoutError as error:
            raise self._refusal("The server is busy: this request's turn did not come.", "queue_timeout") from error

    # --- coming and going

    def _enter(self, asker: Asker) -> Waiting:
        if not asker.is_probe and self.queued >= self._room():
            self._make_room(asker)
        now = self._clock()
        self._arrived += 1
        waiting = Waiting(asker, self._arrived, now, asyncio.get_running_loop().create_future())
        had_queue = self.queued > 0
        if asker.is_probe:
            self._probes.append(waiting)
        else:
            self._shares.enter(waiting)
        self._slots.want(asker.adapter)
        self._dispatch()
        if not had_queue:
            self._paced_at = now
        return waiting

    def _room(self) -> float:
        """How many may wait: those whose turns are likely to come in time, and as many as run at least."""
        if self._paced < PACE_IS_KNOWN_AFTER or not self._pace:
            return self._max_queued
        return min(self._max_queued, max(self._capacity, self._patience_seconds / 2 / self._pace))

    def _make_room(self, newcomer: Asker) -> None:
        """Turn away the last request of the tenant with the most in the queue, or else the newcomer."""
        most = self._fullest(newcomer)
        if most is None:
            raise self._full()
        last = most.last
        self._leave(last)
        last.place.set_exception(self._full())

    def _fullest(self, newcomer: Asker) -> Share | None:
        """The tenant with the most in the queue, if that is twice what the newcomer's would have, or less important.

        Between those that have about the same, who came first stays: to be turned away after a wait is worse.
        """
        most = max(self._shares.waiting(), key=attrgetter("fullness"), default=None)
        priority, fullness = self._shares.fullness_with(newcomer)
        return most if most is not None and (priority, 2 * fullness) <= most.fullness else None

    def _full(self) -> OverloadedError:
        return self._refusal("The server is busy, and its queue is full.", "server_overloaded")

    def _leave(self, waiting: Waiting) -> None:
        if waiting.is_queued:
            self._slots.forgo(waiting.asker.adapter)
            if waiting.asker.is_probe:
                waiting.is_queued = False
                self._probes.remove(waiting)
            else:
                self._shares.leave(waiting)

    def _give_up(self, waiting: Waiting) -> None:
        """Whoever waited hung up, was turned away or lost patience: perhaps just when its turn came."""
        if waiting.place.done() and waiting.place.exception() is None:
            self._end(waiting.place.result())
            return
        self._leave(waiting)
        self._dispatch()

    def _end(self, turn: Turn) -> None:
        asker = turn.asker
        self._slots.give_back(asker.adapter)
        if not asker.is_probe:
            self.sequences -= self._size(asker)
            if asker.priority < LAST:
                self._usual.end(asker.tenant, self._size(asker), asker.weight)
            self._shares.end(turn)
            self._note_pace()
        self._dispatch()

    def _note_pace(self) -> None:
        now = self._clock()
        gap, self._paced_at = now - self._paced_at, now
        if self.queued:
            self._paced += 1
            self._pace += (gap - self._pace) / min(self._paced, max(PACE_IS_KNOWN_AFTER, BATCHES * self._capacity))

    def _refusal(self, message: str, code: str) -> OverloadedError:
        """To come back when the queue is likely to have been served; not everybody at the same moment."""
        seconds = self.queued * self._pace * random.uniform(1, 1.5)  # noqa: S311  — there is nothing to guess
        retry_after = max(1, min(MAX_RETRY_SECONDS, round(seconds)))
        return OverloadedError(message, code=code, headers={"retry-after": str(retry_after)})

    def _size(self, asker: Asker) -> int:
        """In places."""
        return min(asker.sequences, self._capacity)

    # --- whose turn it is

    def _dispatch(self) -> None:
        """Begin every turn that can begin now."""
        self._begin_probes()
        fresh: set[str | None] = set()
        held_back: set[Share] = set()
        while self.queued and self.sequences < self._capacity:
            chosen = self._choose(fresh, held_back)
            if chosen is None:
                break
            asker = chosen.asker
            if self._takes_others_room(asker):
                held_back.add(self._shares[asker.tenant])
                continue
            if self.sequences + self._size(asker) > self._capacity:
                break  # nobody overtakes a request that needs more places than are free
            if asker.adapter not in self._slots.held:
                fresh.add(asker.adapter)
            self._slots.take(asker.adapter)
            self._slots.forgo(asker.adapter)
            self.sequences += self._size(asker)
            if asker.priority < LAST:
                self._usual.begin(asker.tenant, self._size(asker), asker.weight)
            chosen.place.set_result(self._shares.begin(chosen, self._clock()))
        if held_back and self._again is None:  # until what is kept for others is given up
            self._again = asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._again = None
        self._dispatch()

    def _takes_others_room(self, asker: Asker) -> bool:
        size = self._size(asker)
        if not self._usual.is_beyond_share(asker.tenant, size, asker.weight):
            return False
        kept = self._usual.kept(self._shares.waiting_names)
        return kept > 0 and self.sequences + size + kept > self._capacity

    def _begin_probes(self) -> None:
        """They need no place: it is a few tokens, and somebody waits for them with a place."""
        for probe in tuple(self._probes):
            if self._slots.can_take(probe.asker.adapter):
                self._slots.take(probe.asker.adapter)
                self._leave(probe)
                probe.place.set_result(Turn(probe.asker, self._clock() - probe.since, Share()))

    def _choose(self, fresh: AbstractSet[str | None], held_back: AbstractSet[Share]) -> Waiting | None:
        """Who is next but the `held_back`.

        `fresh` are the adapters that have just got a slot: they take along what is there of theirs.
        """
        starved = self._slots.starved()
        first = partial(self._shares.first, but=held_back)
        chosen = first(None if self._slots.is_one_free else self._slots.held | BASE)
        if chosen is None or not starved:
            return chosen
        without_slot = first(starved, without_slot=True)
        rival = without_slot or first(starved)
        if rival is None:
            has_starved_probe = any(probe.asker.adapter in starved for probe in self._probes)
            return first(fresh | BASE) if has_starved_probe else chosen
        if not without_slot and self._order(chosen) < self._order(rival):
            return chosen
        return rival if self._slots.is_one_free else first(fresh | BASE)

    def _order(self, waiting: Waiting) -> Order:
        return self._shares[waiting.asker.tenant].order
