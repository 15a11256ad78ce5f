from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from tests.trainer.recipe_runs import Died, Training, are_equal, curve, dying_after, learn, make_task, resumed, weights
from trainer.errors import TrainingError
from trainer.recipes import held_memory
from trainer.recipes.memory_probe import Tried, fitting
from trainer.step import Fitted


def room_for(most: int) -> Any:
    return lambda size: Tried(fits=size <= most, peak_bytes=size, limit_bytes=most)


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 64))
def test_a_steps_examples_stay_the_same_whatever_fits(batch_size: int, accumulation: int, room: int) -> None:
    fitted = fitting(batch_size, accumulation, room_for(room))
    assert fitted.batch_size * fitted.gradient_accumulation == batch_size * accumulation
    assert fitted.batch_size <= room


@pytest.mark.parametrize(("batch_size", "room", "fits"), [(8, 3, 2), (6, 5, 3), (5, 4, 1), (12, 5, 3), (7, 7, 7)])
def test_halves_are_tried_and_of_odd_numbers_divisors(batch_size: int, room: int, fits: int) -> None:
    assert fitting(batch_size, 1, room_for(room)).batch_size == fits


def test_one_example_that_does_not_fit_is_refused() -> None:
    with pytest.raises(TrainingError, match="shorten max_length"):
        fitting(4, 1, room_for(0))


def examples_in(input_ids: torch.Tensor, options: dict[str, Any]) -> int:
    """How many begin in the batch, which is one row without padding."""
    positions = options.get("position_ids")
    return len(input_ids) if positions is None else int((positions == 0).sum())


def run_out_above(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More examples at once, and the memory is gone."""
    forward = LlamaForCausalLM.forward

    def limited(self: Any, input_ids: torch.Tensor, *words: Any, **options: Any) -> Any:
        if examples_in(input_ids, options) > most:
            raise torch.OutOfMemoryError
        return forward(self, input_ids, *words, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", limited)


def fitted_in(training: Training) -> Fitted:
    (fitted,) = [told for told in training.told if isinstance(told, Fitted)]
    return fitted


def test_a_batch_that_does_not_fit_is_split_and_learns_the_same(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"train": 21, "batch_size": 8, "dropout": 0.0, "held_out": 10, "precision": "float32"}
    whole = learn(make_task(tiny, tmp_path / "whole", **keys))
    run_out_above(2, monkeypatch)
    split = learn(make_task(tiny, tmp_path / "split", probe_memory=True, **keys))
    assert (fitted_in(split).batch_size, fitted_in(split).gradient_accumulation) == (2, 4)
    assert [step.tokens for step in split.steps] == [step.tokens for step in whole.steps]
    for one, other in zip(split.steps, whole.steps, strict=True):
        assert one.loss == pytest.approx(other.loss, abs=1e-4)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-3)
    assert split.trained.held_out_loss == pytest.approx(whole.trained.held_out_loss, abs=1e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_probe_that_fits_leaves_no_trace(method: str, tiny: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"method": method, "held_out": 4, "max_steps": 3}
    without = learn(make_task(tiny, tmp_path / "without", **keys))
    with_it = learn(make_task(tiny, tmp_path / "with", probe_memory=True, **keys))
    assert fitted_in(with_it).batch_size == 3
    assert curve(with_it.steps) == curve(without.steps)
    assert are_equal(weights(with_it.trained), weights(without.trained))


def test_on_the_cpu_what_would_not_fit_is_never_tried(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest: list[int] = []
    forward = LlamaForCausalLM.forward

    def noted(self: Any, input_ids: torch.Tensor, *words: Any, **options: Any) -> Any:
        largest.append(examples_in(input_ids, options))
        return forward(self, input_ids, *words, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", noted)
    monkeypatch.setattr(held_memory, "forget_peak", lambda: None)
    # A process that holds 100 bytes and 50 for each example of its last batch, where 320 are allowed.
    monkeypatch.setattr(held_memory, "peak_bytes", lambda: 100 + 50 * largest[-1])
    monkeypatch.setattr(held_memory, "limit_bytes", lambda: 350)
    training = learn(make_task(tiny, tmp_path, batch_size=8, max_steps=1, probe_memory=True))
    assert (fitted_in(training).batch_size, fitted_in(training).peak_bytes) == (4, 300)
    assert max(largest) == 4


def test_a_resumed_run_splits_as_before(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: dict[str, Any] = {"batch_size": 4, "held_out": 0, "max_steps": 4, "checkpoint_steps": 2, "probe_memory": True}
    with monkeypatch.context() as patched:
        run_out_above(2, patched)
        whole = learn(make_task(tiny, tmp_path / "whole", **keys))
        task = make_task(tiny, tmp_path / "died", **keys)
        with pytest.raises(Died):
            learn(task, dying_after(3))
    second = learn(resumed(task))
    assert fitted_in(second).batch_size == 2
    assert curve(second.steps) == curve(whole.steps[2:])


def test_memory_is_in_bytes() -> None:
    assert 10**7 < held_memory.held_bytes() <= held_memory.peak_bytes() * 1.01
    assert held_memory.limit_bytes() > held_memory.held_bytes()


def test_a_containers_limit_counts_without_its_cached_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 300\nactive_file 200\n")
    monkeypatch.setattr(held_memory, "CGROUP", tmp_path)
    assert held_memory.limit_bytes() - held_memory.held_bytes() == pytest.approx(600, abs=2**22)
