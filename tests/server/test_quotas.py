"""Who may ask now, by a clock of the test's own."""

from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import Caller, Scope, TenantLimits
from server.errors import RateLimitedError
from server.quotas import Admission, Quotas, duration

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


# --- reservations


def reserving(
    staged: Staged, caller: Caller, prompt_tokens: int, max_tokens: int | None = None, sequences: int = 1
) -> Admission:
    """A request in flight, with what it is likely to take."""
    held = ExitStack()
    with ExitStack() as attempt:
        admission = attempt.enter_context(staged.quotas.admitted(caller))
        admission.reserve(prompt_tokens, sequences=sequences, max_tokens=max_tokens)
        held = attempt.pop_all()
    staged.held.append(held)
    return admission


def test_requests_in_flight_together_reserve_what_they_are_likely_to_take(staged: Staged) -> None:
    caller = asks(tokens_per_minute=60)
    reserving(staged, caller, 20, max_tokens=10)
    reserving(staged, caller, 10, max_tokens=10)
    with pytest.raises(RateLimitedError, match="this takes some 20") as caught:
        reserving(staged, caller, 10, max_tokens=10)
    assert caught.value.headers["retry-after"] == "10"
    staged.now += 10 * SECOND
    reserving(staged, caller, 10, max_tokens=10)


def test_what_passes_is_taken_from_the_reservation_and_the_rest_goes_back(staged: Staged) -> None:
    caller = asks(tokens_per_minute=100)
    admission = reserving(staged, caller, 10, max_tokens=40)
    assert admission.headers["x-ratelimit-remaining-tokens"] == "50"
    admission.take(12)
    assert admission.headers["x-ratelimit-remaining-tokens"] == "50"
    staged.held.pop().close()
    assert staged.ask(caller)["x-ratelimit-remaining-tokens"] == "88"


def test_what_passes_beyond_the_reservation_counts(staged: Staged) -> None:
    caller = asks(tokens_per_minute=100)
    reserving(staged, caller, 10, max_tokens=10).take(70)
    staged.held.pop().close()
    assert staged.ask(caller)["x-ratelimit-remaining-tokens"] == "30"


def test_a_request_larger_than_a_minutes_tokens_passes_when_none_is_missing(staged: Staged) -> None:
    caller = asks(tokens_per_minute=60)
    reserving(staged, caller, 1000, max_tokens=1)
    staged.held.pop().close()
    staged.ask(caller, tokens=6)
    with pytest.raises(RateLimitedError) as caught:
        reserving(staged, caller, 1000, max_tokens=1)
    assert caught.value.headers["retry-after"] == "6"
    staged.now += 6 * SECOND
    reserving(staged, caller, 1000, max_tokens=1)


def test_a_refused_reservation_uses_up_no_token_but_a_request_for_its_body_was_read(staged: Staged) -> None:
    caller = asks(tokens_per_minute=60, requests_per_minute=3, max_concurrency=2)
    reserving(staged, caller, 40, max_tokens=15)
    for _ in range(2):
        with pytest.raises(RateLimitedError, match="tokens_per_minute"):
            reserving(staged, caller, 40, max_tokens=20)
    refusal = staged.refusal(caller)
    assert "requests_per_minute" in refusal.message
    assert refusal.headers["x-ratelimit-remaining-tokens"] == "5"


def test_a_tenants_answers_teach_what_is_likely(staged: Staged) -> None:
    caller = asks(tokens_per_minute=10_000)
    for _ in range(100):
        reserving(staged, caller, 10).take(10 + 5)
        staged.held.pop().close()
        staged.now += 100
    before = int(staged.ask(caller)["x-ratelimit-remaining-tokens"])
    after = int(reserving(staged, caller, 10).headers["x-ratelimit-remaining-tokens"])
    assert before - after in range(15, 18)


def test_what_is_in_flight_counts_for_the_month(staged: Staged) -> None:
    caller = asks(monthly_tokens=1000)
    staged.month_tokens = 900
    reserving(staged, caller, 100, max_tokens=10)
    refusal = staged.refusal(caller)
    assert (refusal.code, refusal.headers["retry-after"]) == ("monthly_quota_exceeded", "1")
    staged.held.pop().close()
    assert staged.is_admitted(caller)


def test_many_that_begin_together_overrun_a_month_by_no_more_than_one_of_them(staged: Staged) -> None:
    caller = asks(monthly_tokens=1000)
    for _ in range(60):  # short answers have taught that little is likely
        reserving(staged, caller, 1).take(2)
        staged.held.pop().close()
    held = [ExitStack() for _ in range(60)]
    admissions = [one.enter_context(staged.quotas.admitted(caller)) for one in held]
    passed = []
    for admission in admissions:  # all were let in before any body had come
        with suppress(RateLimitedError):
            admission.reserve(1, sequences=2, max_tokens=250)
            passed.append(admission)
    assert len(passed) == 2
    for one in held:
        one.close()
    assert staged.is_admitted(caller)


def test_a_months_last_tokens_can_be_used(staged: Staged) -> None:
    caller = asks(monthly_tokens=1000)
    staged.month_tokens = 999
    reserving(staged, caller, 500, max_tokens=10_000)
    with pytest.raises(RateLimitedError) as caught:
        reserving(staged, caller, 1, max_tokens=1)
    assert (caught.value.code, caught.value.headers["retry-after"]) == ("monthly_quota_exceeded", "1")


def test_what_a_request_used_of_its_month_is_reserved_no_more(staged: Staged) -> None:
    caller = asks(monthly_tokens=1000)
    reserving(staged, caller, 100, max_tokens=900).take(600)
    staged.month_tokens = 600
    assert not staged.is_admitted(caller)
    staged.held.pop().close()
    assert staged.is_admitted(caller)


def test_an_answer_that_says_no_length_reserves_as_much_of_a_month_as_is_usual(staged: Staged) -> None:
    caller = asks(monthly_tokens=64)
    for _ in range(100):
        reserving(staged, caller, 0).take(1)
        staged.held.pop().close()
    reserving(staged, caller, 0)
    assert not staged.is_admitted(caller)


@given(
    per_minute=st.integers(1, 500),
    steps=st.lists(
        st.tuples(st.integers(0, MINUTE), st.integers(0, 600), st.integers(1, 100), st.integers(0, 40), st.booleans()),
        max_size=40,
    ),
)
def test_reservations_never_hold_more_than_a_bucket_and_all_come_back(
    per_minute: int, steps: list[tuple[int, int, int, int, bool]]
) -> None:
    staged, caller = Staged(), asks(tokens_per_minute=per_minute)
    for pause, prompt_tokens, max_tokens, taken, ends in steps:
        staged.now += pause
        try:
            admission = reserving(staged, caller, prompt_tokens, max_tokens)
        except RateLimitedError:
            continue
        tenant = staged.quotas._tenants["acme"]
        assert tenant.tokens.missing <= per_minute * MINUTE or prompt_tokens + max_tokens > per_minute
        admission.take(min(taken, prompt_tokens))
        if ends:
            staged.held.pop(0).close()
    for held in staged.held:
        held.close()
    staged.now += 60 * MINUTE * 60
    staged.ask(caller)
    assert len(staged.quotas) == 0


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


def test_what_is_counted_after_the_end_is_taken_from_the_bucket(staged: Staged) -> None:
    caller = asks(tokens_per_minute=1000)
    with staged.quotas.admitted(caller) as admission:
        admission.reserve(10, sequences=1, max_tokens=50)
        admission.take(10)
    admission.take(40)
    assert staged.ask(caller)["x-ratelimit-remaining-tokens"] == "950"
