from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from tests.trainer.recipe_runs import learn, make_task
from trainer.errors import TrainingError
from trainer.recipes.watchdog import Remedies, Watchdog
from trainer.step import Advice, Step
from trainer.whole_checkpoint import last_whole_checkpoint

ADAPTER = Remedies(is_adapter=True, learning_rate=2e-4, alpha=32, rank=16)
FULL = Remedies(is_adapter=False, learning_rate=2e-5, alpha=32, rank=16)


def steps_of(
    losses: Sequence[float], *, total: int = 1000, speed: Sequence[float] = (), norm: float = 1.0
) -> list[Step]:
    return [
        Step(
            step=number,
            total_steps=total,
            loss=loss,
            learning_rate=1e-4,
            tokens=number,
            elapsed_seconds=number,
            tokens_per_second=speed[number - 1] if speed else 100.0,
            gradient_norm=norm,
        )
        for number, loss in enumerate(losses, 1)
    ]


def advice(steps: Sequence[Step], remedies: Remedies = ADAPTER) -> list[Advice]:
    watchdog = Watchdog(remedies)
    return [each for step in steps for each in watchdog.see(step)]


def kinds(*words: Any, **options: Any) -> list[tuple[str, int]]:
    return [(each.kind, each.step) for each in advice(*words, **options)]


FALLING = [3.0 * 0.99**step for step in range(300)]


def test_a_loss_that_falls_needs_no_advice() -> None:
    assert advice(steps_of(FALLING, total=300)) == []


def test_a_loss_that_is_flat_after_a_hundred_steps_wants_a_higher_learning_rate() -> None:
    (told,) = advice(steps_of([2.0] * 120))
    assert (told.kind, told.step) == ("flat", 100)
    assert "raise learning_rate, such as 6.0e-04" in told.sentence


def test_a_short_run_is_looked_at_after_fifty() -> None:
    assert kinds(steps_of([2.0] * 60, total=60)) == [("flat", 50)]


def test_a_run_of_fewer_steps_is_not_judged() -> None:
    assert kinds(steps_of([2.0] * 49, total=49)) == []


def test_a_noisy_loss_wants_a_lower_learning_rate() -> None:
    losses = [each * (1.8 if step % 2 else 0.4) for step, each in enumerate(FALLING)]
    told = advice(steps_of(losses))
    assert told[0].kind == "noisy"
    assert "lower learning_rate, such as 6.7e-05" in told[0].sentence


def test_a_loss_that_rises_wants_a_lower_learning_rate() -> None:
    (told,) = advice(steps_of([*FALLING[:100], *[3.0] * 80]))
    assert told.kind == "rising"
    assert "lower learning_rate" in told.sentence


def test_a_plateau_wants_a_higher_alpha_first_and_then_a_higher_rank() -> None:
    told = advice(steps_of([*FALLING[:100], *[1.0] * 500]))
    assert [each.kind for each in told] == ["plateau", "plateau"]
    assert "double alpha first (to 64)" in told[0].sentence
    assert "double rank (to 32)" in told[1].sentence
    assert told[1].step - told[0].step >= 200


def test_all_weights_have_no_alpha_to_double() -> None:
    assert advice(steps_of([*FALLING[:100], *[1.0] * 500]), FULL) == []


def test_the_end_of_a_schedule_is_no_plateau() -> None:
    assert kinds(steps_of([*FALLING[:240], *[0.27] * 60], total=300)) == []


def test_a_loss_near_zero_has_arrived() -> None:
    assert kinds(steps_of([*FALLING[:100], *[0.01] * 500])) == []


def test_a_loss_of_nothing_from_the_start_means_a_wrong_mask() -> None:
    assert kinds(steps_of([0.0] * 3)) == [("nothing_to_learn", 1)]


def test_an_adapter_without_a_gradient_is_dead() -> None:
    assert kinds(steps_of([2.0] * 3, norm=0.0)) == [("dead_adapter", 1)]


def test_steps_of_uneven_speed_are_being_paged() -> None:
    speed = [10.0 if step % 10 == 0 else 100.0 for step in range(300)]
    told = advice(steps_of(FALLING, speed=speed))
    assert [each.kind for each in told] == ["jitter"]
    assert "10.0 times as long" in told[0].sentence


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_it(loss: float) -> None:
    with pytest.raises(TrainingError, match="The loss of step 3"):
        advice(steps_of([1.0, 1.0, loss]))


curves = st.lists(st.floats(0, 20), max_size=260)


@given(curves, st.integers(1, 400))
def test_the_same_curve_gives_the_same_advice(losses: list[float], total: int) -> None:
    steps = steps_of(losses, total=total)
    assert advice(steps) == advice(steps)


@given(curves)
def test_no_curve_gets_the_same_advice_again_and_again(losses: list[float]) -> None:
    told = [each.kind for each in advice(steps_of(losses))]
    assert all(told.count(kind) <= (2 if kind == "plateau" else 1) for kind in told)


@given(curves, st.data())
def test_a_resumed_run_gets_what_is_left_of_the_advice(losses: list[float], data: st.DataObject) -> None:
    """On resume, the watchdog sees the earlier steps again, and what it says of them is not told again."""
    steps = steps_of(losses)
    at = data.draw(st.integers(0, len(steps)))
    watchdog = Watchdog(ADAPTER)
    for step in steps[:at]:
        watchdog.see(step)
    later = [each for step in steps[at:] for each in watchdog.see(step)]
    assert later == [each for each in advice(steps) if each.step > at]


def test_a_training_that_diverges_stops_at_once_and_keeps_no_checkpoint_of_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = LlamaForCausalLM.forward, []

    def breaking(self: Any, *words: Any, **options: Any) -> Any:
        given = forward(self, *words, **options)
        calls.append(torch.is_grad_enabled())
        if calls[-1] and sum(calls) == 4:
            given.logits = given.logits * torch.tensor(float("nan"))
        return given

    monkeypatch.setattr(LlamaForCausalLM, "forward", breaking)
    task = make_task(tiny, tmp_path, checkpoint_steps=2)
    with pytest.raises(TrainingError, match=r"The loss of step 4 is nan"):
        learn(task)
    assert last_whole_checkpoint(task.checkpoints) == task.checkpoints / "checkpoint-2"


def test_advice_is_told_while_it_trains(tiny: Path, tmp_path: Path) -> None:
    training = learn(make_task(tiny, tmp_path, max_steps=52, batch_size=1, learning_rate=1e-9, schedule="constant"))
    told = [each for each in training.told if isinstance(each, Advice)]
    assert "flat" in {each.kind for each in told}
