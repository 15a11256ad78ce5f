"""What was used, on its way into the registry: added up in memory, and written every few seconds.

Each count is written exactly once, in the transaction of its batch: a batch that fails is added up further and tried
again. Two exceptions. A process that is killed loses what it has not written: a few seconds' worth. And if the
connection breaks while the database commits, the batch may be written twice: nobody knows whether it was.

Belongs to one event loop. Use as `async with`, for as long as requests are served; what is left is written at the end.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from time import monotonic
from types import TracebackType
from typing import Final, Self

from adapters import Caller, Registry, UsageRow
from server.batches import Account, Batch, Month, Sums
from server.metrics import Labels
from server.threads import Threads

_KNOWN_SECONDS: Final = 60
"""After which a month's sum is read again: other servers write it, too."""
_MAX_ACCOUNTS: Final = 50_000
"""Sums in memory, while the database is away. What is used beyond that is told apart by tenant and day alone."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a request's counts go."""

    labels: Labels
    day: date
    batch: Batch
    sums: Sums
    month: Month


@dataclass(slots=True)
class _Known:
    """What the registry has of a tenant's month."""

    tokens: int
    read_at: float


def _now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """The sums that are not written yet, and how many tokens of this month that makes for a tenant."""

    def __init__(
        self,
        registry: Registry,
        threads: Threads,
        *,
        every_seconds: float,
        calendar: Callable[[], datetime] = _now,
        clock: Callable[[], float] = monotonic,
        max_accounts: int = _MAX_ACCOUNTS,
    ) -> None:
        self._registry = registry
        self._threads = threads
        self._every_seconds = every_seconds
        self._calendar = calendar
        self._clock = clock
        self._max_accounts = max_accounts
        self._unwritten = Batch()
        self._writing = Batch()
        self._month = _month_of(self.today())
        self._known: dict[str, _Known] = {}
        self._written_at = clock()
        self._is_stopping = asyncio.Event()
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._writer = asyncio.create_task(self._write_at_times())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._is_stopping.set()
        await self._writer
        await self.flush()

    def book(self, caller: Caller) -> "RequestBook":
        """For one request of `caller`."""
        return RequestBook(self, caller)

    def month_tokens(self, tenant: str) -> int:
        """What it has used in this month (UTC), as far as this server knows: `learn` first."""
        self._turn_the_page(self.today())
        known = self._known.get(tenant)
        unwritten = sum(batch.tokens(self._month, tenant) for batch in (self._unwritten, self._writing))
        return unwritten + (known.tokens if known else 0)

    async def learn(self, caller: Caller) -> None:
        """Read what the caller's tenant has used in this month, if it has a monthly limit and nobody has lately.

        Raises:
            RegistryError: the database failed.
        """
        tenant = caller.tenant
        if tenant is None or caller.limits.monthly_tokens is None or self._is_fresh(tenant):
            return
        if tenant in self._known and self._lock.locked():
            return  # a sum that is a little old will do: on a database in trouble the lock is held for long
        # Not while a batch is written: nobody could say whether the sum has it in it.
        async with self._lock:
            if self._is_fresh(tenant):
                return
            month, usage = self._month, self._registry.usage
            tokens = await self._threads.read(usage.tokens, Caller.server(), tenant, since=month, until=self.today())
            if month == self._month:
                self._known[tenant] = _Known(tokens, self._clock())

    def place(self, caller: Caller, labels: Labels) -> _Place:
        """Where to add what a request of `caller` has just used."""
        today, tenant = self.today(), caller.tenant or ""
        account = Account(today, tenant, labels.adapter, int(labels.version or 0), caller.key_id or "")
        month = self._unwritten.month(_month_of(today), tenant)
        return _Place(labels, today, self._unwritten, self._unwritten.of(account, self._max_accounts), month)

    def is_current(self, place: _Place) -> bool:
        """Whether what is used now belongs there."""
        return place.batch is self._unwritten and place.day == self.today()

    def behind_seconds(self) -> float:
        """How long ago all was written, if something is not."""
        is_behind = bool(self._unwritten.sums or self._writing.sums)
        return self._clock() - self._written_at if is_behind else 0.0

    async def flush(self) -> None:
        """Write what is not written yet. If that fails, it is logged, and kept for the next time."""
        async with self._lock:
            self._forget()
            if not self._unwritten.sums:
                self._written_at = self._clock()
                return
            self._writing, self._unwritten = self._unwritten, Batch()
            rows = [UsageRow(*account, **asdict(sums)) for account, sums in self._writing.sums.items()]
            try:
                await self._threads.write(self._registry.usage.add, Caller.server(), rows)
            except Exception:
                log.exception("usage could not be written", extra={"rows": len(rows)})
                self._keep(self._writing)
            else:
                self._settle(self._writing)
                self._written_at = self._clock()
            self._writing = Batch()

    async def _write_at_times(self) -> None:
        while not self._is_stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_stopping.wait(), self._every_seconds)
            await self.flush()

    def _keep(self, batch: Batch) -> None:
        """Add up further what could not be written."""
        for account, sums in batch.sums.items():
            self._unwritten.of(account, self._max_accounts).add(sums)
        for month, unwritten in batch.months.items():
            self._unwritten.month(*month).tokens += unwritten.tokens

    def _settle(self, batch: Batch) -> None:
        """These are in the registry now."""
        self._turn_the_page(self.today())
        for (month, tenant), written in batch.months.items():
            if month == self._month and tenant in self._known:
                self._known[tenant].tokens += written.tokens

    def _is_fresh(self, tenant: str) -> bool:
        self._turn_the_page(self.today())
        known = self._known.get(tenant)
        return known is not None and self._clock() - known.read_at < _KNOWN_SECONDS

    def _forget(self) -> None:
        """Those that nobody has asked about lately: the memory follows the tenants that ask."""
        oldest = self._clock() - 2 * _KNOWN_SECONDS
        self._known = {tenant: known for tenant, known in self._known.items() if known.read_at > oldest}

    def _turn_the_page(self, today: date) -> None:
        """What is known is of another month, when the month is another."""
        if _month_of(today) != self._month:
            self._month = _month_of(today)
            self._known.clear()

    def today(self) -> date:
        """By the calendar, in UTC."""
        return self._calendar().date()


def _month_of(day: date) -> date:
    return day.replace(day=1)


class RequestBook:
    """What one request writes into the ledger: its `Meter`'s book."""

    def __init__(self, ledger: Ledger, caller: Caller) -> None:
        self._ledger = ledger
        self._caller = caller
        self._place: _Place | None = None

    def used(self, labels: Labels, prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> None:
        """Tokens, on the day on which they pass."""
        place = self._find(labels)
        place.month.tokens += prompt_tokens + completion_tokens
        sums = place.sums
        sums.prompt_tokens += prompt_tokens
        sums.completion_tokens += completion_tokens
        sums.cached_tokens += cached_tokens

    def answered(self, labels: Labels, first_token_seconds: float) -> None:
        """The first token, on its day."""
        sums = self._find(labels).sums
        sums.answered_requests += 1
        sums.first_token_ms += round(1000 * first_token_seconds)

    def ended(self, labels: Labels, seconds: float, *, has_failed: bool, is_aborted: bool) -> None:
        """The request, on the day on which it ends."""
        sums = self._find(labels).sums
        sums.requests += 1
        sums.failed_requests += has_failed
        sums.aborted_requests += is_aborted
        sums.request_ms += round(1000 * seconds)

    def _find(self, labels: Labels) -> _Place:
        """Found once for many tokens: until another batch begins, another day, or another version answers."""
        place = self._place
        if place is None or not self._ledger.is_current(place) or place.labels is not labels:
            place = self._place = self._ledger.place(self._caller, labels)
        return place
