"""What was used, on its way into the registry: added up in memory, and written every few seconds.

Each count is written exactly once, in the transaction of its batch: a batch that fails is added up further and tried
again. Two exceptions. A process that is killed loses what it has not written: a few seconds' worth. And if the
connection breaks while the database commits, the batch may be written twice: nobody knows whether it was.

Belongs to one event loop. Use as `async with`, for as long as requests are served; what is left is written at the end.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from time import monotonic
from types import TracebackType
from typing import Final, NamedTuple, Self

from adapters import Caller, Registry, UsageRow
from server.metrics import Labels
from server.threads import Threads

_KNOWN_SECONDS: Final = 60
"""After which a month's sum is read again: other servers write it, too."""
_MAX_ACCOUNTS: Final = 50_000
"""Sums in memory, while the database is away. What is used beyond that is told apart by tenant and day alone."""

log = logging.getLogger(__name__)


class _Account(NamedTuple):
    day: date
    tenant: str
    adapter: str
    version: int
    key_id: str


@dataclass(slots=True)
class Sums:
    """Of one account: the counts of a UsageRow, in its order."""

    requests: int = 0
    failed_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """All of them."""
        return self.requests, self.failed_requests, self.prompt_tokens, self.completion_tokens

    @property
    def tokens(self) -> int:
        """Prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens

    def add(self, more: "Sums") -> None:
        """Add each to each."""
        self.requests += more.requests
        self.failed_requests += more.failed_requests
        self.prompt_tokens += more.prompt_tokens
        self.completion_tokens += more.completion_tokens


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
        self._unwritten: dict[_Account, Sums] = {}
        self._month = _month_of(self._today())
        self._known: dict[str, _Known] = {}
        self._unwritten_tokens: Counter[tuple[date, str]] = Counter()
        """By month: the wall clock may step over a month's end and back."""
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
        self._turn_the_page(self._today())
        known = self._known.get(tenant)
        return self._unwritten_tokens[self._month, tenant] + (known.tokens if known else 0)

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
            tokens = await self._threads.read(usage.tokens, Caller.server(), tenant, since=month, until=self._today())
            if month == self._month:
                self._known[tenant] = _Known(tokens, self._clock())

    def count(self, caller: Caller, labels: Labels, sums: "Sums") -> None:
        """Add what a request of `caller` has just used."""
        today, tenant = self._today(), caller.tenant or ""
        self._unwritten_tokens[_month_of(today), tenant] += sums.tokens
        self._sums(_Account(today, tenant, labels.adapter, int(labels.version or 0), caller.key_id or "")).add(sums)

    async def flush(self) -> None:
        """Write what is not written yet. If that fails, it is logged, and kept for the next time."""
        async with self._lock:
            self._forget()
            batch, self._unwritten = self._unwritten, {}
            if not batch:
                return
            rows = [UsageRow(*account, *sums.counts) for account, sums in batch.items()]
            try:
                await self._threads.write(self._registry.usage.add, Caller.server(), rows)
            except Exception:
                log.exception("usage could not be written", extra={"rows": len(rows)})
                for account, sums in batch.items():
                    self._sums(account).add(sums)
                return
            self._turn_the_page(self._today())
            for account, sums in batch.items():
                self._settle(account, sums.tokens)

    async def _write_at_times(self) -> None:
        while not self._is_stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_stopping.wait(), self._every_seconds)
            await self.flush()

    def _sums(self, account: _Account) -> "Sums":
        if account not in self._unwritten and len(self._unwritten) >= self._max_accounts:
            account = _Account(account.day, account.tenant, "", 0, "")
        return self._unwritten.setdefault(account, Sums())

    def _settle(self, account: _Account, tokens: int) -> None:
        """These are in the registry now."""
        month = _month_of(account.day)
        self._unwritten_tokens[month, account.tenant] -= tokens
        if not self._unwritten_tokens[month, account.tenant]:
            del self._unwritten_tokens[month, account.tenant]
        if month == self._month and account.tenant in self._known:
            self._known[account.tenant].tokens += tokens

    def _is_fresh(self, tenant: str) -> bool:
        self._turn_the_page(self._today())
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

    def _today(self) -> date:
        return self._calendar().date()


def _month_of(day: date) -> date:
    return day.replace(day=1)


class RequestBook:
    """What one request writes into the ledger: its `Meter`'s book."""

    def __init__(self, ledger: Ledger, caller: Caller) -> None:
        self._ledger = ledger
        self._caller = caller

    def used(self, labels: Labels, prompt_tokens: int, completion_tokens: int) -> None:
        """Tokens, on the day on which they pass."""
        self._ledger.count(self._caller, labels, Sums(0, 0, prompt_tokens, completion_tokens))

    def ended(self, labels: Labels, *, has_failed: bool) -> None:
        """The request, on the day on which it ends."""
        self._ledger.count(self._caller, labels, Sums(1, int(has_failed)))
