"""What each tenant was served of the engine, beside the others: the virtual token counters.

Of "Fairness in Serving Large Language Models" (OSDI 2024): a tenant's counter grows with the tokens it is served, over
its weight, an answer's twice as fast as a prompt's; who has the lowest is next; and whoever comes back starts no lower
than those who are there, so that nobody saves turns up. What a request is likely to take is charged when it begins.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

COMPLETION_WEIGHT: Final = 2
"""An answer's token beside a prompt's, as in the paper."""
LIKELY_TOKENS: Final = 64
"""Of an answer, while nothing is known of its tenant's."""
NEWEST_SHARE: Final = 0.1
"""What the newest answer counts for in its tenant's likely length."""
FEW: Final = 64
"""Tenants that rest and are not worth looking through."""

LAST: Final = 1_000_000
"""The priority of what nobody waits for."""

Order = tuple[int, float, int]
"""A tenant's place among those that wait: its priority, its counter, and how much it has in hand."""


@dataclass(frozen=True, slots=True)
class Asker:
    """What the queue knows of a request."""

    tenant: str
    adapter: str | None = None
    """The key of the version that is to answer, for which it needs a slot. None: the base, which needs none."""
    sequences: int = 1
    """How many the engine makes of it: prompts times choices."""
    prompt_tokens: int = 0
    """As far as anybody can tell before the engine has read it."""
    max_tokens: int | None = None
    """Of each answer, if it says so."""
    weight: int = 1
    priority: int = 0
    """Lower goes first."""
    is_probe: bool = False
    """Ours, for an adapter that is being loaded: it needs the slot, and waits for nothing else."""


@dataclass(slots=True, eq=False)
class Turn:
    """A request's turn, from its begin to its end."""

    asker: Asker
    waited_seconds: float
    _share: "Share"
    _charged: float = 0
    _ahead: float = 0
    """What of that is not used yet."""
    _prompt_tokens: int = 0
    _completion_tokens: int = 0

    def use(self, prompt_tokens: int, completion_tokens: int) -> None:
        """So many tokens more. What is beyond the likely is charged at once."""
        self._prompt_tokens += prompt_tokens
        self._completion_tokens += completion_tokens
        self._charge_up_to(max(self._charged, self._cost))

    def charge_likely(self) -> None:
        """It begins: charge what it is likely to take."""
        asker, answer = self.asker, self._share.likely_tokens
        likely = answer if asker.max_tokens is None else min(answer, asker.max_tokens)
        self._charge_up_to(asker.prompt_tokens + COMPLETION_WEIGHT * likely * asker.sequences)

    def settle(self) -> None:
        """It has ended: give back what it was charged and has not used, and learn from it."""
        self._charge_up_to(self._cost)
        if self._completion_tokens:
            self._share.learn(self._completion_tokens / self.asker.sequences)

    @property
    def _cost(self) -> int:
        return self._prompt_tokens + COMPLETION_WEIGHT * self._completion_tokens

    def _charge_up_to(self, cost: float) -> None:
        # Over the weight that this turn began with: what is given back is what was charged.
        share, weight, ahead = self._share, self.asker.weight, cost - self._cost
        share.served += (cost - self._charged) / weight
        share.ahead += (ahead - self._ahead) / weight
        self._charged, self._ahead = cost, ahead


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in the queue."""

    asker: Asker
    number: int
    """Lower came earlier."""
    since: float
    place: asyncio.Future[Turn]
    is_queued: bool = True


@dataclass(slots=True, eq=False)
class Share:
    """One tenant's."""

    served: float = 0
    """The virtual counter: weighted tokens over the tenant's weight."""
    ahead: float = 0
    """What of that is charged and not used yet."""
    weight: int = 1
    priority: int = 0
    turns: int = 0
    """In hand."""
    slot_turns: int = 0
    """Those among them that need a slot."""
    queued: int = 0
    queues: OrderedDict[str | None, deque[Waiting]] = field(default_factory=OrderedDict)
    """By adapter, each in the order in which its requests came."""
    likely_tokens: float = LIKELY_TOKENS

    @property
    def order(self) -> Order:
        """Lower goes first."""
        return self.priority, self.served, self.turns

    @property
    def settled(self) -> float:
        """What was served for certain: a newcomer who starts from here does not pay for others' guesses."""
        return self.served - self.ahead

    @property
    def fullness(self) -> tuple[int, float]:
        """How much it has in the queue for one of its priority and weight."""
        return self.priority, self.queued / self.weight

    @property
    def last(self) -> Waiting:
        """Its newest request in the queue."""
        return max((queue[-1] for queue in self.queues.values()), key=attrgetter("number"))

    def learn(self, tokens: float) -> None:
        """An answer had so many."""
        self.likely_tokens += NEWEST_SHARE * (tokens - self.likely_tokens)

    def first(self, adapters: AbstractSet[str | None] | None) -> Waiting:
        """Its oldest request for one of these adapters (None: for any), of which there is one."""
        queues = self.queues
        keys = queues if adapters is None else queues.keys() & adapters
        return min((queues[key][0] for key in keys), key=attrgetter("number"))


class Shares:
    """Those of all tenants that have requests, or have had more than their part lately; and who waits for what."""

    def __init__(self) -> None:
        self._shares: dict[str, Share] = {}
        self._waiting: dict[str, Share] = {}
        self._askers: dict[str | None, dict[str, Share]] = {}
        """Whose requests wait for an adapter."""
        self._last_served = 0.0
        """The counter of the last tenant that left the queue."""
        self._swept_size = FEW
        self.queued = 0
        self.turns = 0

    def __len__(self) -> int:
        return len(self._shares)

    def __getitem__(self, tenant: str) -> Share:
        return self._shares[tenant]

    @property
    def waiting_names(self) -> AbstractSet[str]:
        """The tenants with requests in the queue."""
        return self._waiting.keys()

    def waiting(self) -> Iterator[Share]:
        """Those with requests in the queue."""
        return iter(self._waiting.values())

    def first(
        self,
        adapters: AbstractSet[str | None] | None = None,
        *,
        without_slot: bool = False,
        but: AbstractSet[Share] = frozenset(),
    ) -> Waiting | None:
        """Of the requests for these adapters (None: for any), the oldest of the tenant whose turn is next.

        Perhaps only among tenants that have no slot; never of one of those in `but`.
        """
        shares = self._waiting.values() if adapters is None else self._askers_of(adapters)
        if but:
            shares = [share for share in shares if share not in but]
        if without_slot:
            shares = [share for share in shares if not share.slot_turns]
        share = min(shares, key=attrgetter("order"), default=None)
        return share.first(adapters) if share else None

    def _askers_of(self, adapters: AbstractSet[str | None]) -> Collection[Share]:
        if len(adapters) > len(self._waiting):
            return [share for share in self._waiting.values() if not share.queues.keys().isdisjoint(adapters)]
        return {share for adapter in adapters for share in self._askers.get(adapter, {}).values()}

    def fullness_with(self, asker: Asker) -> tuple[int, float]:
        """A tenant's `fullness`, if one more request of it waited."""
        share = self._shares.get(asker.tenant)
        return asker.priority, ((share.queued if share else 0) + 1) / asker.weight

    def enter(self, waiting: Waiting) -> None:
        """A request comes into the queue."""
        asker = waiting.asker
        share = self._shares.setdefault(asker.tenant, Share())
        share.weight, share.priority = asker.weight, asker.priority
        if not share.queued:
            share.served = max(share.served, self._least)
            self._waiting[asker.tenant] = share
        if asker.adapter not in share.queues:
            share.queues[asker.adapter] = deque()
            self._askers.setdefault(asker.adapter, {})[asker.tenant] = share
        share.queues[asker.adapter].append(waiting)
        share.queued += 1
        self.queued += 1

    def leave(self, waiting: Waiting) -> None:
        """It leaves the queue, for its turn or for good. That it has left already is no error."""
        if not waiting.is_queued:
            return
        waiting.is_queued = False
        tenant, adapter = waiting.asker.tenant, waiting.asker.adapter
        share = self._shares[tenant]
        queue = share.queues[adapter]
        queue.remove(waiting)
        if not queue:
            del share.queues[adapter], self._askers[adapter][tenant]
            if not self._askers[adapter]:
                del self._askers[adapter]
        share.queued -= 1
        self.queued -= 1
        if not share.queued:
            del self._waiting[tenant]
            self._last_served = share.settled
        self._forget(tenant)

    def begin(self, waiting: Waiting, now: float) -> Turn:
        """The turn of a request that is in the queue."""
        asker = waiting.asker
        share = self._shares[asker.tenant]
        share.turns += 1
        share.slot_turns += asker.adapter is not None
        self.turns += 1
        self.leave(waiting)
        turn = Turn(asker, now - waiting.since, share)
        turn.charge_likely()
        return turn

    def end(self, turn: Turn) -> None:
        """That turn has ended."""
        turn.settle()
        share = self._shares[turn.asker.tenant]
        share.turns -= 1
        share.slot_turns -= turn.asker.adapter is not None
        self.turns -= 1
        self._forget(turn.asker.tenant)

    @property
    def _least(self) -> float:
        """What a newcomer is taken to have been served."""
        return min((share.settled for share in self._waiting.values()), default=self._last_served)

    def _forget(self, tenant: str) -> None:
        """Drop one that has nothing here, unless it was served more than a newcomer."""
        share = self._shares[tenant]
        if share.queued or share.turns:
            return
        if not self.turns and not self.queued:
            self._shares.clear()
            self._last_served = 0.0
        elif share.served <= self._least:
            del self._shares[tenant]
        elif len(self._shares) > self._swept_size:
            self._sweep()

    def _sweep(self) -> None:
        least = self._least
        self._shares = {
            name: share for name, share in self._shares.items() if share.queued or share.turns or share.served > least
        }
        self._swept_size = FEW + 2 * len(self._shares)
