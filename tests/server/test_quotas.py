"""Who may ask now, by a clock of the test's own."""

from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import Caller, Scope, TenantLimits
from server.errors import RateLimitedError
from server.quotas import Quotas, duration

SECOND = 10**9
MINUTE = 60 * SECOND


def asks(tenant: str = "acme", /, **limits: int) -> Caller:
    return Caller(tenant, frozenset({Scope.INFER}), "user", limits=TenantLimits(**limits))


@dataclass
class Staged:
    """Quotas, and what they look at."""

    now: int = 0
    day: datetime = datetime(2026, 11, 30, 23, 59, 30, tzinfo=UTC)
    month_tokens: int = 0
    held: list[ExitStack] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.quotas = Quotas(lambda _: self.month_tokens, clock=lambda: self.now, calendar=lambda: self.day)

    def ask(self, caller: Caller, tokens: int = 0) -> dict[str, str]:
        """One request, from its beginning to its end."""
        with self.quotas.admitted(caller) as admission:
            admission.take(tokens)
            return dict(admission.headers)

    def begin(self, caller: Caller) -> None:
        """One request that does not end yet."""
        held = ExitStack()
        held.enter_context(self.quotas.admitted(caller))
        self.held.append(held)

    def refusal(self, caller: Caller) -> RateLimitedError:
        with pytest.raises(RateLimitedError) as caught:
            self.ask(caller)
        return caught.value

    def is_admitted(self, caller: Caller) -> bool:
        try:
            self.ask(caller)
        except RateLimitedError:
            return False
        return True


@pytest.fixture
def staged() -> Staged:
    return Staged()


def test_a_tenant_without_limits_asks_as_it_likes_and_is_told_of_none(staged: Staged) -> None:
    assert {str(staged.ask(asks(), tokens=10**9)) for _ in range(1000)} == {"{}"}
    assert len(staged.quotas) == 0


def test_requests_come_back_one_by_one(staged: Staged) -> None:
    caller = asks(requests_per_minute=6)
    assert [staged.is_admitted(caller) for _ in range(7)] == [True] * 6 + [False]
    refusal = staged.refusal(caller)
    assert (refusal.code, refusal.message) == (
        "rate_limit_exceeded",
        "This tenant may make 6 requests a minute (requests_per_minute): come back in 10s.",
    )
    assert refusal.headers == {
        "retry-after": "10",
        "x-ratelimit-limit-requests": "6",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    staged.now += 10 * SECOND - 1
    assert not staged.is_admitted(caller)
    staged.now += 1
    assert [staged.is_admitted(caller) for _ in range(2)] == [True, False]


def test_an_answer_says_what_is_left(staged: Staged) -> None:
    caller = asks(requests_per_minute=60, tokens_per_minute=600)
    staged.ask(caller, tokens=100)
    assert staged.ask(caller) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "58",
        "x-ratelimit-reset-requests": "2s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "500",
        "x-ratelimit-reset-tokens": "10s",
    }


def test_tokens_may_become_a_debt_that_is_paid_back_before_anything_else_is_admitted(staged: Staged) -> None:
    caller = asks(tokens_per_minute=60)
    staged.ask(caller, tokens=59)
    staged.ask(caller, tokens=60 * 60 + 1)
    refusal = staged.refusal(caller)
    assert (refusal.code, refusal.headers["retry-after"]) == ("rate_limit_exceeded", "3601")
    assert refusal.headers["x-should-retry"] == "false"
    assert refusal.headers["x-ratelimit-remaining-tokens"] == "0"
    staged.now += 3600 * SECOND
    assert not staged.is_admitted(caller)
    staged.now += 1
    assert staged.is_admitted(caller)


def test_a_place_is_free_again_however_its_request_ended(staged: Staged) -> None:
    caller = asks(max_concurrency=1)
    with staged.quotas.admitted(caller):
        refusal = staged.refusal(caller)
    assert (refusal.code, refusal.headers) == ("concurrency_limit_exceeded", {"retry-after": "1"})
    with suppress(ZeroDivisionError), staged.quotas.admitted(caller):
        raise ZeroDivisionError
    assert staged.is_admitted(caller)
    assert staged.is_admitted(caller)


def test_a_month_that_is_used_up_is_told_until_its_end(staged: Staged) -> None:
    caller = asks(monthly_tokens=1000)
    staged.month_tokens = 999
    assert staged.is_admitted(caller)
    staged.month_tokens = 1000
    refusal = staged.refusal(caller)
    assert (refusal.code, refusal.headers["retry-after"]) == ("monthly_quota_exceeded", "30")
    staged.day = datetime(2026, 12, 1, tzinfo=UTC)
    assert staged.refusal(caller).headers["retry-after"] == str(31 * 86400)


@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_minute", "max_concurrency", "monthly_tokens"])
def test_a_limit_of_nothing_lets_nothing_in(staged: Staged, limit: str) -> None:
    refusal = staged.refusal(asks(**{limit: 0}))
    assert limit in refusal.message
    assert int(refusal.headers["retry-after"]) >= 1


def test_a_refused_request_uses_nothing_up(staged: Staged) -> None:
    caller = asks(requests_per_minute=2, max_concurrency=1)
    staged.begin(caller)
    assert [staged.is_admitted(caller) for _ in range(5)] == [False] * 5
    staged.held.pop().close()
    assert staged.is_admitted(caller)


def test_a_changed_limit_holds_at_the_next_request(staged: Staged) -> None:
    for _ in range(10):
        staged.ask(asks(requests_per_minute=10))
    assert not staged.is_admitted(asks(requests_per_minute=10))
    assert staged.is_admitted(asks(requests_per_minute=11))
    assert not staged.is_admitted(asks(requests_per_minute=5))
    assert staged.is_admitted(asks())


def test_a_concurrency_limit_counts_those_that_ran_before_it_was_set(staged: Staged) -> None:
    staged.begin(asks())
    assert staged.refusal(asks(max_concurrency=1)).code == "concurrency_limit_exceeded"
    assert staged.is_admitted(asks(max_concurrency=2))


def test_no_tenant_uses_up_anothers(staged: Staged) -> None:
    acme = asks(requests_per_minute=1, tokens_per_minute=1, max_concurrency=1)
    staged.ask(acme, tokens=100)
    assert not staged.is_admitted(acme)
    assert staged.is_admitted(replace(acme, tenant="zoo"))


def test_ten_thousand_tenants_that_are_idle_again_are_forgotten(staged: Staged) -> None:
    for index in range(10_000):
        staged.ask(asks(f"tenant-{index}", requests_per_minute=60, tokens_per_minute=100), tokens=50)
    assert len(staged.quotas) == 10_000
    staged.now += MINUTE
    staged.ask(asks("another", requests_per_minute=60))
    assert len(staged.quotas) == 1


def test_who_is_in_debt_or_in_flight_is_not_forgotten(staged: Staged) -> None:
    debtor = asks("debtor", tokens_per_minute=10)
    staged.ask(debtor, tokens=10_000)
    staged.begin(asks("busy", max_concurrency=1))
    staged.now += 2 * MINUTE
    assert staged.is_admitted(asks("another"))
    assert not staged.is_admitted(debtor)
    assert not staged.is_admitted(asks("busy", max_concurrency=1))


@pytest.mark.parametrize(
    ("seconds", "written"), [(0, "0s"), (1, "1s"), (59, "59s"), (360, "6m0s"), (3600, "1h0m0s"), (90_061, "25h1m1s")]
)
def test_durations_are_written_as_openai_writes_them(seconds: int, written: str) -> None:
    assert duration(seconds) == written


@given(
    per_minute=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.integers(0, 2 * MINUTE), st.integers(1, 30)), max_size=30),
)
def test_in_no_span_of_time_more_are_admitted_than_a_bucket_and_what_flows_in(
    per_minute: int, steps: list[tuple[int, int]]
) -> None:
    staged, caller = Staged(), asks(requests_per_minute=per_minute)
    admitted: list[int] = []
    for pause, burst in steps:
        staged.now += pause
        admitted += [staged.now for _ in range(burst) if staged.is_admitted(caller)]
    for first, began in enumerate(admitted):
        for last in range(first, len(admitted)):
            assert (last - first + 1 - per_minute) * MINUTE <= per_minute * (admitted[last] - began)


@given(
    per_minute=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.integers(0, MINUTE), st.integers(0, 5000)), min_size=1, max_size=30),
)
def test_who_comes_back_when_told_is_admitted_and_who_comes_before_is_not(
    per_minute: int, steps: list[tuple[int, int]]
) -> None:
    staged, caller = Staged(), asks(tokens_per_minute=per_minute)
    spent = 0
    for pause, tokens in steps:
        staged.now += pause
        try:
            staged.ask(caller, tokens)
        except RateLimitedError as error:
            retry = int(error.headers["retry-after"])
            assert retry >= 1
            staged.now += (retry - 1) * SECOND
            staged.now += SECOND
            staged.ask(caller, tokens)
        # Whatever was spent before this request is all but paid back: it was let in on a bucket above empty.
        assert (spent - per_minute) * MINUTE < per_minute * staged.now or not spent
        spent += tokens


@given(
    limit=st.integers(1, 5),
    steps=st.lists(st.booleans() | st.integers(0, 9), max_size=60),
)
def test_no_more_are_in_flight_than_may_be_and_every_place_comes_back_once(limit: int, steps: list[int | bool]) -> None:
    staged, caller = Staged(), asks(max_concurrency=limit)
    for step in steps:
        if step is True:
            in_flight = len(staged.held)
            try:
                staged.begin(caller)
            except RateLimitedError:
                assert in_flight == limit
            else:
                assert in_flight < limit
        elif staged.held:
            staged.held.pop(int(step) % len(staged.held)).close()
    for held in staged.held:
        held.close()
    assert len(staged.quotas) == 0
