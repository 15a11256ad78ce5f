"""Whether a tenant may ask now: requests and tokens a minute, requests in flight, tokens a month.

A minute's limit is a bucket that refills all the time. Tokens are counted as they pass, so a request may take its
tenant's bucket below empty: what follows waits until that is paid back. Invariant: in any span of time, no more
requests are admitted than one bucket holds and what flows into it meanwhile.

Knows no database. Belongs to one event loop, and counts what this server serves: each of several has its own buckets.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic_ns
from typing import Final

from adapters import Caller, TenantLimits
from server.errors import RateLimitedError

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

    def __init__(self, tenant: _Tenant, headers: Mapping[str, str]) -> None:
        self._tenant = tenant
        self.headers = headers
        """For its answer."""

    def take(self, tokens: int) -> None:
        """Count tokens of this request."""
        if self._tenant.limits.tokens_per_minute is not None:
            self._tenant.tokens.take(tokens)


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
        self._check(name, tenant)
        self._tenants[name] = tenant
        tenant.in_flight += 1
        if tenant.limits.requests_per_minute is not None:
            tenant.requests.take(1)
        try:
            yield Admission(tenant, tenant.headers())
        finally:
            tenant.in_flight -= 1
            if tenant.is_idle:
                self._tenants.pop(name, None)

    def _check(self, name: str, tenant: _Tenant) -> None:
        limits = tenant.limits
        if limits.max_concurrency is not None and tenant.in_flight >= limits.max_concurrency:
            raise _refused(
                tenant,
                f"This tenant may have {limits.max_concurrency} requests in flight (max_concurrency)",
                1 if limits.max_concurrency else _NEVER_SECONDS,
                "concurrency_limit_exceeded",
            )
        if limits.monthly_tokens is not None and self._month_tokens(name) >= limits.monthly_tokens:
            raise _refused(
                tenant,
                f"This tenant has used the {limits.monthly_tokens} tokens of its month (monthly_tokens)",
                _seconds_to_next_month(self._calendar()),
                "monthly_quota_exceeded",
            )
        rate = limits.requests_per_minute
        if rate is not None and tenant.requests.left(rate) < 1:
            seconds = tenant.requests.wait_seconds(rate, (rate - 1) * _MINUTE)
            raise _refused(tenant, f"This tenant may make {rate} requests a minute (requests_per_minute)", seconds)
        rate = limits.tokens_per_minute
        if rate is not None and tenant.tokens.missing >= rate * _MINUTE:
            seconds = tenant.tokens.wait_seconds(rate, rate * _MINUTE - 1)
            raise _refused(tenant, f"This tenant may use {rate} tokens a minute (tokens_per_minute)", seconds)

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
