"""Whether a tenant may ask now: requests and tokens a minute, requests in flight, tokens a month.

A minute's limit is a bucket that refills all the time. What a request is likely to take is reserved in it before it
begins, becomes use as tokens pass, and what is left goes back at its end. It may still take more than that, and so its
tenant's bucket below empty: what follows waits until that is paid back. Invariant: in any span of time, no more
requests are admitted than one bucket holds and what flows into it meanwhile.

A month's limit flows back to nobody, so of it the most is reserved that a request says it may take: beyond the limit
goes no more than the last one that was let in.

Knows no database. Belongs to one event loop, and counts what this server serves: each of several has its own buckets.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic_ns
from typing import Final

from adapters import Caller, TenantLimits
from server.errors import RateLimitedError
from server.shares import LIKELY_TOKENS, NEWEST_SHARE

_SECOND: Final = 10**9
"""In nanoseconds, as the clock gives them."""
_MINUTE: Final = 60 * _SECOND
_NEVER_SECONDS: Final = 3600
"""What a tenant whose limit is 0 is told: somebody may have lifted it by then."""
_CLIENTS_WAIT_SECONDS: Final = 60
"""OpenAI's clients heed no longer `retry-after`: they would ask again at once, unless they are told not to."""


@dataclass(slots=True)
class _Bucket:
    """What is missing in it, times _MINUTE: whole numbers all the way, so that rounding adds up to nothing."""

    missing: int = 0
    at: int = 0

    def refill(self, per_minute: int | None, now: int) -> None:
        if per_minute is None:
            self.missing = 0
        self.missing = max(0, self.missing - (per_minute or 0) * (now - self.at))
        self.at = now

    def take(self, count: int) -> None:
        self.missing += count * _MINUTE

    def give_back(self, count: int) -> None:
        self.missing = max(0, self.missing - count * _MINUTE)

    def left(self, per_minute: int) -> int:
        """Whole ones that are in it; fewer than none is a debt."""
        return per_minute - -(-self.missing // _MINUTE)

    def wait_seconds(self, per_minute: int, missing: int) -> int:
        """Until no more than `missing` is, rounded up."""
        if per_minute == 0:
            return _NEVER_SECONDS
        return -(-(self.missing - missing) // (per_minute * _SECOND))


@dataclass(slots=True)
class _Tenant:
    """What one tenant is using."""

    limits: TenantLimits = field(default_factory=TenantLimits)
    requests: _Bucket = field(default_factory=_Bucket)
    tokens: _Bucket = field(default_factory=_Bucket)
    in_flight: int = 0
    reserved: int = 0
    """Of its month's tokens, what requests in flight may take, and have not taken yet."""
    likely_tokens: float = LIKELY_TOKENS
    """Of an answer."""

    def refill(self, now: int) -> None:
        self.requests.refill(self.limits.requests_per_minute, now)
        self.tokens.refill(self.limits.tokens_per_minute, now)

    @property
    def is_idle(self) -> bool:
        """Whether a tenant that nobody has seen would be the same."""
        return not (self.in_flight or self.requests.missing or self.tokens.missing)

    def headers(self) -> dict[str, str]:
        """How much of its minute is left, in OpenAI's words."""
        headers = {}
        for name, bucket, per_minute in (
            ("requests", self.requests, self.limits.requests_per_minute),
            ("tokens", self.tokens, self.limits.tokens_per_minute),
        ):
            if per_minute is not None:
                headers[f"x-ratelimit-limit-{name}"] = str(per_minute)
                headers[f"x-ratelimit-remaining-{name}"] = str(max(0, bucket.left(per_minute)))
                headers[f"x-ratelimit-reset-{name}"] = duration(bucket.wait_seconds(per_minute, 0))
        return headers


class Admission:
    """One request that was let in."""

    def __init__(self, tenant: _Tenant, check_month: Callable[[], None]) -> None:
        self._tenant = tenant
        self._check_month = check_month
        self._reserved = 0
        self._reserved_of_month = 0
        self._prompt_tokens = 0
        self._sequences = 0
        self._taken = 0

    @property
    def headers(self) -> dict[str, str]:
        """For its answer."""
        return self._tenant.headers()

    def reserve(self, prompt_tokens: int, *, sequences: int, max_tokens: int | None) -> None:
        """Keep what this request is likely to take of its minute, and what it may take of its month, until it ends.

        One that is larger than all of a minute's tokens needs a full bucket.

        Raises:
            RateLimitedError: there is not enough left. No token is counted then, but the request is: its body was read.
        """
        self._check_month()
        tenant, per_minute = self._tenant, self._tenant.limits.tokens_per_minute
        likely = tenant.likely_tokens if max_tokens is None else min(tenant.likely_tokens, max_tokens)
        tokens = prompt_tokens + math.ceil(likely * sequences)
        if per_minute is not None:
            missing = max(0, per_minute - tokens) * _MINUTE
            if tenant.tokens.missing > missing:
                seconds = tenant.tokens.wait_seconds(per_minute, missing)
                why = f"This tenant may use {per_minute} tokens a minute (tokens_per_minute), this takes some {tokens}"
                raise _refused(tenant, why, seconds)
            tenant.tokens.take(tokens)
        self._reserved, self._prompt_tokens, self._sequences = tokens, prompt_tokens, sequences
        most = max(tenant.likely_tokens, LIKELY_TOKENS) if max_tokens is None else max_tokens
        self._reserved_of_month = prompt_tokens + math.ceil(most * sequences)
        tenant.reserved += self._reserved_of_month

    def take(self, tokens: int) -> None:
        """Count tokens of this request."""
        covered = min(tokens, self._reserved)
        self._reserved -= covered
        self._release(tokens)
        self._taken += tokens
        if self._tenant.limits.tokens_per_minute is not None:
            self._tenant.tokens.take(tokens - covered)

    def settle(self) -> None:
        """It has ended: give back what it did not take, and learn how long its tenant's answers are."""
        tenant = self._tenant
        tenant.tokens.give_back(self._reserved)
        self._release(self._reserved_of_month)
        self._reserved = 0  # what is counted late is covered by nothing
        if self._sequences and self._taken:
            answer = max(0, self._taken - self._prompt_tokens) / self._sequences
            tenant.likely_tokens += NEWEST_SHARE * (answer - tenant.likely_tokens)

    def _release(self, tokens: int) -> None:
        """So many of the month's are no longer reserved, but used, or free again."""
        released = min(tokens, self._reserved_of_month)
        self._reserved_of_month -= released
        self._tenant.reserved -= released


def _now() -> datetime:
    return datetime.now(UTC)


class Quotas:
    """Who may ask. `month_tokens(tenant)` is what it has used in this month, `clock` gives nanoseconds."""

    def __init__(
        self,
        month_tokens: Callable[[str], int],
        *,
        clock: Callable[[], int] = monotonic_ns,
        calendar: Callable[[], datetime] = _now,
    ) -> None:
        self._month_tokens = month_tokens
        self._clock = clock
        self._calendar = calendar
        self._tenants: dict[str, _Tenant] = {}
        self._swept_at = clock()

    def __len__(self) -> int:
        """Tenants that are remembered: those that ask, and those whose buckets are not full again."""
        return len(self._tenants)

    @contextmanager
    def admitted(self, caller: Caller) -> Iterator[Admission]:
        """A place for one request of the caller's tenant, with the limits that it has now.

        Raises:
            RateLimitedError: there is none: `rate_limit_exceeded`, `concurrency_limit_exceeded` or
                `monthly_quota_exceeded`. Nothing is counted then.
        """
        now = self._clock()
        self._sweep(now)
        name = caller.tenant or ""
        tenant = self._tenants.get(name) or _Tenant()
        tenant.limits = caller.limits
        tenant.refill(now)
        self._check_month(name, tenant)
        self._check_minute(tenant)
        self._tenants[name] = tenant
        tenant.in_flight += 1
        if tenant.limits.requests_per_minute is not None:
            tenant.requests.take(1)
        admission = Admission(tenant, partial(self._check_month, name, tenant))
        try:
            yield admission
        finally:
            admission.settle()
            tenant.in_flight -= 1
            if tenant.is_idle:
                self._tenants.pop(name, None)

    def _check_minute(self, tenant: _Tenant) -> None:
        limits = tenant.limits
        if limits.max_concurrency is not None and tenant.in_flight >= limits.max_concurrency:
            raise _refused(
                tenant,
                f"This tenant may have {limits.max_concurrency} requests in flight (max_concurrency)",
                1 if limits.max_concurrency else _NEVER_SECONDS,
                "concurrency_limit_exceeded",
            )
        rate = limits.requests_per_minute
        if rate is not None and tenant.requests.left(rate) < 1:
            seconds = tenant.requests.wait_seconds(rate, (rate - 1) * _MINUTE)
            raise _refused(tenant, f"This tenant may make {rate} requests a minute (requests_per_minute)", seconds)
        rate = limits.tokens_per_minute
        if rate is not None and tenant.tokens.missing >= rate * _MINUTE:
            seconds = tenant.tokens.wait_seconds(rate, rate * _MINUTE - 1)
            raise _refused(tenant, f"This tenant may use {rate} tokens a minute (tokens_per_minute)", seconds)

    def _check_month(self, name: str, tenant: _Tenant) -> None:
        limit = tenant.limits.monthly_tokens
        if limit is None:
            return
        used = self._month_tokens(name)
        if used >= limit:
            why = f"This tenant has used the {limit} tokens of its month (monthly_tokens)"
            raise _refused(tenant, why, _seconds_to_next_month(self._calendar()), "monthly_quota_exceeded")
        if used + tenant.reserved >= limit:
            why = f"What this tenant has in flight may use up the {limit} tokens of its month (monthly_tokens)"
            raise _refused(tenant, why, 1, "monthly_quota_exceeded")

    def _sweep(self, now: int) -> None:
        """Forget, once a minute, who is idle: the memory follows the tenants that ask."""
        if now - self._swept_at < _MINUTE:
            return
        self._swept_at = now
        for tenant in self._tenants.values():
            tenant.refill(now)
        self._tenants = {name: tenant for name, tenant in self._tenants.items() if not tenant.is_idle}


def duration(seconds: int) -> str:
    """`0s`, `1s`, `6m0s`, `1h0m0s`: as Go writes it, and so OpenAI."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _refused(tenant: _Tenant, why: str, seconds: int, code: str | None = None) -> RateLimitedError:
    headers = {"retry-after": str(seconds), **tenant.headers()}
    if seconds > _CLIENTS_WAIT_SECONDS:
        headers["x-should-retry"] = "false"
    return RateLimitedError(f"{why}: come back in {duration(seconds)}.", code=code, headers=headers)


def _seconds_to_next_month(now: datetime) -> int:
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (first + timedelta(days=31)).replace(day=1)
    return -(-(following - now) // timedelta(seconds=1))
