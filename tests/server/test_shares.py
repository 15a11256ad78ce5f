"""The virtual token counters: what is charged when, given back when, and how far apart tenants can come."""

import asyncio
from dataclasses import replace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.shares import FEW, LIKELY_TOKENS, Asker, Shares, Turn, Waiting
from tests.server.queueing import Scene, run

ACME = Asker("acme", prompt_tokens=10)


class Desk:
    """Shares without a queue's rules: whoever enters begins when the test says so."""

    def __init__(self) -> None:
        self.shares = Shares()
        self.numbers = iter(range(10**6))

    def enter(self, asker: Asker) -> Waiting:
        waiting = Waiting(asker, next(self.numbers), 0, cast("asyncio.Future[Turn]", None))
        self.shares.enter(waiting)
        return waiting

    def begin(self, asker: Asker) -> Turn:
        return self.shares.begin(self.enter(asker), 0)

    def served(self, tenant: str = "acme") -> float:
        return self.shares[tenant].served


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.enter(Asker("someone else"))  # while nobody has anything here, nothing is remembered
    return desk


def test_a_turn_is_charged_with_what_it_is_likely_to_take(desk: Desk) -> None:
    desk.begin(ACME)
    assert desk.served() == 10 + 2 * LIKELY_TOKENS


def test_no_more_is_likely_than_was_asked_for(desk: Desk) -> None:
    desk.begin(replace(ACME, max_tokens=5, sequences=3))
    assert desk.served() == 10 + 2 * 5 * 3


def test_what_was_not_used_is_given_back(desk: Desk) -> None:
    desk.enter(ACME)
    turn = desk.begin(ACME)
    turn.use(12, 3)
    assert desk.served() == 10 + 2 * LIKELY_TOKENS
    desk.shares.end(turn)
    assert desk.served() == 12 + 2 * 3


def test_what_is_beyond_the_likely_is_charged_at_once(desk: Desk) -> None:
    turn = desk.begin(replace(ACME, max_tokens=4))
    for _ in range(10):
        turn.use(0, 1)
    turn.use(11, 0)
    assert desk.served() == 11 + 2 * 10


def test_a_tenant_of_twice_the_weight_is_charged_half(desk: Desk) -> None:
    desk.begin(replace(ACME, weight=2, max_tokens=5))
    assert desk.served() == (10 + 2 * 5) / 2


def test_a_weight_that_changes_meanwhile_gives_nothing_back_that_was_not_charged(desk: Desk) -> None:
    turn = desk.begin(replace(ACME, weight=10))
    desk.enter(ACME)
    desk.shares.end(turn)
    assert desk.served() == pytest.approx(0)


def test_a_tenants_answers_teach_how_long_they_are(desk: Desk) -> None:
    for _ in range(100):
        turn = desk.begin(ACME)
        turn.use(10, 8)
        desk.shares.end(turn)
    before = desk.served()
    desk.begin(ACME)
    assert desk.served() - before == pytest.approx(10 + 2 * 8, rel=0.01)


def test_who_comes_back_starts_with_the_least_of_those_who_wait(desk: Desk) -> None:
    for tenant, tokens in (("bee", 500), ("zoo", 300)):
        turn = desk.begin(Asker(tenant))
        desk.enter(Asker(tenant))
        turn.use(0, tokens)
    desk.shares.leave(next(iter(desk.shares.waiting())).queues[None][0])
    desk.enter(ACME)
    assert desk.served() == 600


def test_a_newcomer_does_not_pay_for_what_others_are_only_likely_to_take() -> None:
    desk = Desk()
    for _ in range(5):
        desk.begin(Asker("zoo"))
    desk.enter(Asker("zoo"))
    desk.enter(ACME)
    assert desk.served() == pytest.approx(0)


def test_who_has_nothing_here_is_forgotten_unless_it_was_served_more_than_a_newcomer(desk: Desk) -> None:
    desk.shares.end(desk.begin(ACME))
    assert len(desk.shares) == 1
    turn = desk.begin(ACME)
    turn.use(0, 100)
    desk.shares.end(turn)
    assert len(desk.shares) == 2


def test_the_memory_follows_the_tenants_that_ask() -> None:
    desk = Desk()
    always = desk.begin(Asker("always"))
    for index in range(5000):
        turn = desk.begin(Asker(f"tenant-{index}"))
        turn.use(0, 50)
        desk.shares.end(turn)
        always.use(0, 1)
        desk.shares.leave(desk.enter(Asker("always")))
    assert len(desk.shares) < 10 * FEW


def test_when_nobody_has_anything_here_nothing_is_remembered() -> None:
    desk = Desk()
    turn = desk.begin(ACME)
    turn.use(0, 1000)
    desk.shares.end(turn)
    assert len(desk.shares) == 0


def test_that_a_request_has_left_already_is_no_error(desk: Desk) -> None:
    waiting = desk.enter(ACME)
    desk.shares.leave(waiting)
    desk.shares.leave(waiting)
    assert desk.shares.queued == 1


@settings(max_examples=20)
@given(
    loads=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 3), st.integers(1, 6)), min_size=2, max_size=4),
    capacity=st.integers(1, 6),
)
def test_tenants_that_always_have_requests_stay_within_a_bound_of_each_other(
    loads: list[tuple[int, int, int]], capacity: int
) -> None:
    """The paper's theorem 4.4: 2 max(w_p L_in, w_q M), where M is what all that run at once may take."""
    largest = max(2 * tokens for tokens, _, _ in loads)

    async def story(scene: Scene) -> None:
        for tenant, (tokens, weight, length) in enumerate(loads):
            for index in range(capacity + 1):
                asker = Asker(f"tenant-{tenant}", weight=weight, max_tokens=tokens)
                await scene.ask(f"{tenant}-{index}", asker, tokens=tokens, seconds=length / 2, again=True)
        for _ in range(8):
            await scene.pass_seconds(5)
            served = [scene.used[f"tenant-{tenant}"] / weight for tenant, (_, weight, _) in enumerate(loads)]
            assert max(served) - min(served) <= 2 * (capacity + 1) * largest

    run(story, capacity=capacity)
