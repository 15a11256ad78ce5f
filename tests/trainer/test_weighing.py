import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.judging.weighing import Series, difference, regression


def abilities(lost: int, gained: int, *, count: int = 100, held: int = 40) -> Series:
    """A base with `held` right answers that stay, and so many that are lost and gained."""
    base = [1.0] * held + [1.0] * lost + [0.0] * (count - held - lost)
    result = [1.0] * held + [0.0] * lost + [1.0] * gained + [0.0] * (count - held - lost - gained)
    return Series("abilities", tuple(base), tuple(result))


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (2, 0), (7, 6), (10, 0), (20, 15)])
def test_losing_a_few_questions_of_a_hundred_is_no_regression(lost: int, gained: int) -> None:
    assert regression(abilities(lost, gained), 0.1).passed


@pytest.mark.parametrize(("lost", "gained"), [(11, 0), (20, 4), (40, 0)])
def test_losing_many_is_one(lost: int, gained: int) -> None:
    found = regression(abilities(lost, gained), 0.1)

    assert not found.passed
    assert f"{lost} lost, {gained} gained" in found.reason


def test_a_loss_that_chance_could_bring_about_is_told_and_not_held_against_it() -> None:
    found = regression(abilities(3, 0, count=10, held=4), 0.1)

    assert found.passed
    assert "too few to tell" in found.reason


def test_a_loss_that_is_certain_but_small_is_within_what_may_go() -> None:
    assert regression(abilities(8, 0), 0.1).passed
    assert not regression(abilities(8, 0), 0.05).passed


@given(st.integers(0, 30), st.integers(0, 30), st.floats(0, 1))
def test_losing_one_more_never_makes_it_pass(lost: int, gained: int, most: float) -> None:
    if regression(abilities(lost + 1, gained, held=30), most).passed:
        assert regression(abilities(lost, gained, held=30), most).passed


def test_a_few_examples_that_all_got_better_are_no_clear_change() -> None:
    assert difference(Series("f1", (0.0,) * 4, (1.0,) * 4)).verdict == "no clear change"
    assert difference(Series("f1", (0.0,) * 8, (1.0,) * 8)).verdict == "better"


def test_a_loss_that_falls_is_better() -> None:
    falling = Series("loss", (20.0,) * 8, (10.0,) * 8, weights=(10.0,) * 8, is_loss=True)

    found = difference(falling)

    assert (found.base, found.result, found.verdict) == (2.0, 1.0, "better")
