"""What a recipe tells, evaluates and refuses."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from tests.trainer.recipe_runs import are_equal, curve, learn, make_examples, make_task, weights
from trainer.errors import JobError, TrainingError
from trainer.job import TrainJob
from trainer.recipes import trackers
from trainer.recipes.arguments import arguments, total_steps
from trainer.recipes.exact import LengthGrouped
from trainer.recipes.spread import share_out
from trainer.recipes.trainable import require_frozen_base
from trainer.step import Checkpoint, Evaluation
from trainer.supervision import Example


def mean_loss(model: Any, examples: list[Example]) -> float:
    """The base's own loss, an example at a time."""
    total = count = 0.0
    for example in examples:
        with torch.no_grad():
            given = model(input_ids=torch.tensor([example.input_ids]), labels=torch.tensor([example.labels]))
        learned = sum(label >= 0 for label in example.labels[1:])
        total, count = total + given.loss.item() * learned, count + learned
    return total / count


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_held_out_loss_is_the_mean_over_its_learned_tokens(batch_size: int, tiny: Path, tmp_path: Path) -> None:
    task = make_task(tiny, tmp_path, held_out=7, batch_size=batch_size, max_steps=1, learning_rate=1e-12)
    model = AutoModelForCausalLM.from_pretrained(tiny, local_files_only=True)
    held_out = [each for each in task.held_out if isinstance(each, Example)]
    assert learn(task).trained.held_out_loss == pytest.approx(mean_loss(model, held_out), abs=1e-4)


def test_a_run_with_held_out_examples_is_evaluated_once_at_its_end(tiny: Path, tmp_path: Path) -> None:
    training = learn(make_task(tiny, tmp_path, held_out=5))
    (evaluation,) = [told for told in training.told if isinstance(told, Evaluation)]
    assert (evaluation.step, evaluation.held_out_loss) == (8, training.trained.held_out_loss)


def test_evaluations_come_every_so_many_steps_and_at_the_end(tiny: Path, tmp_path: Path) -> None:
    training = learn(make_task(tiny, tmp_path, held_out=5, eval_steps=3))
    assert [told.step for told in training.told if isinstance(told, Evaluation)] == [3, 6, 8]


def test_early_stopping_gives_back_the_best(tiny: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"held_out": 6, "early_stopping": 2, "eval_steps": 1, "learning_rate": 3e-2, "epochs": 20.0}
    training = learn(make_task(tiny, tmp_path, **keys))
    evaluations = [told for told in training.told if isinstance(told, Evaluation)]
    best = min(evaluations, key=lambda told: told.held_out_loss)
    assert training.trained.last.step < 80
    assert (training.trained.kept_step, training.trained.held_out_loss) == (best.step, best.held_out_loss)


def test_every_step_tells_its_memory_and_gradient(tiny: Path, tmp_path: Path) -> None:
    steps = learn(make_task(tiny, tmp_path)).steps
    assert [step.step for step in steps] == list(range(1, 9))
    assert all(step.memory_bytes > 10**7 and step.gradient_norm > 0 for step in steps)


def test_checkpoints_are_told_when_they_are_whole(tiny: Path, tmp_path: Path) -> None:
    training = learn(make_task(tiny, tmp_path, checkpoint_steps=3))
    assert [told.name for told in training.told if isinstance(told, Checkpoint)] == [
        "checkpoint-3",
        "checkpoint-6",
        "checkpoint-8",
    ]


@pytest.mark.parametrize("keys", [{}, {"method": "qlora"}, {"packing": True}, {"group_by_length": True}])
def test_the_same_job_twice_gives_the_same_weights(keys: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    one, other = (learn(make_task(tiny, tmp_path / name, max_steps=3, **keys)) for name in ("one", "other"))
    assert curve(one.steps) == curve(other.steps)
    assert are_equal(weights(one.trained), weights(other.trained))


def test_qlora_learns_on_after_an_evaluation(tiny: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"method": "qlora", "max_steps": 12, "learning_rate": 1e-2, "batch_size": 12, "dropout": 0.0}
    without = learn(make_task(tiny, tmp_path / "without", **keys))
    with_it = learn(make_task(tiny, tmp_path / "with", held_out=3, eval_steps=2, **keys))
    assert curve(with_it.steps) == curve(without.steps)
    assert with_it.steps[-1].loss < with_it.steps[2].loss - 0.3


def test_tensorboard_is_written_to(tiny: Path, tmp_path: Path) -> None:
    task = make_task(tiny, tmp_path, held_out=3, trackers=("tensorboard",))
    steps = learn(task).steps
    found = EventAccumulator(str(task.trackers)).Reload()
    assert [event.step for event in found.Scalars("loss")] == list(range(1, 9))
    assert [event.value for event in found.Scalars("loss")] == pytest.approx([step.loss for step in steps])
    assert len(found.Scalars("held_out_loss")) == 1


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_made(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _name: None)
    task = make_task(tiny, tmp_path / "run", trackers=("wandb",))
    with pytest.raises(JobError, match="wandb is not installed here: `python -m pip install wandb`"):
        learn(task)
    assert not (tmp_path / "run").exists()


def test_other_trackers_are_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    assert trackers.services(("tensorboard", "wandb", "mlflow")) == ["wandb", "mlflow"]


@pytest.mark.parametrize("keys", [{"early_stopping": 2}, {"eval_steps": 2}])
def test_evaluations_without_held_out_examples_are_refused(keys: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="need held-out examples"):
        learn(make_task(tiny, tmp_path, **keys))


def test_a_base_that_is_not_frozen_is_refused(tiny: Path, tmp_path: Path) -> None:
    task = make_task(tiny, tmp_path, max_steps=1)
    model = learn(task).trained.model
    assert require_frozen_base(model, task.job) == sum(each.numel() for each in weights_of(model))

    model.get_input_embeddings().weight.requires_grad_()
    with pytest.raises(TrainingError, match=r"the base must stay as it is, but .*embed_tokens.*would be trained"):
        require_frozen_base(model, task.job)


def test_an_adapter_that_is_partly_frozen_is_refused(tiny: Path, tmp_path: Path) -> None:
    task = make_task(tiny, tmp_path, max_steps=1)
    model = learn(task).trained.model
    next(each for each in model.parameters() if each.requires_grad).requires_grad_(requires_grad=False)
    with pytest.raises(TrainingError, match="parameters, but"):
        require_frozen_base(model, task.job)


def weights_of(model: Any) -> list[torch.Tensor]:
    return [each for each in model.parameters() if each.requires_grad]


def test_full_training_that_is_partly_frozen_is_refused(tiny: Path) -> None:
    job = TrainJob.model_validate_json('{"base": "tiny", "data": "none.jsonl", "method": "full"}')
    model = AutoModelForCausalLM.from_pretrained(tiny, local_files_only=True)
    model.get_input_embeddings().weight.requires_grad_(requires_grad=False)
    with pytest.raises(TrainingError, match=r"embed_tokens.weight and 0 more are frozen"):
        require_frozen_base(model, job)


def test_the_number_of_steps_is_known_beforehand(tiny: Path, tmp_path: Path) -> None:
    for rows, keys in ((11, {}), (10, {"gradient_accumulation": 2}), (7, {"epochs": 1.5}), (4, {"max_steps": 9})):
        task = replace(make_task(tiny, tmp_path / str(rows), **keys), train=make_examples(rows))
        assert learn(task).trained.last.step == total_steps(task.job, rows)


def test_the_number_of_steps_is_a_whole_runs_in_each_of_its_processes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_task(tiny, tmp_path, batch_size=2, gradient_accumulation=4).job
    alone = [total_steps(job, rows) for rows in range(1, 40)]
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert [total_steps(share_out(job, 4), rows) for rows in range(1, 40)] == alone


def test_ddp_looks_for_no_unused_parts_of_an_adapter(tiny: Path, tmp_path: Path) -> None:
    lora, full = (arguments(make_task(tiny, tmp_path, method=method), row_count=12) for method in ("lora", "full"))
    assert (lora.ddp_find_unused_parameters, full.ddp_find_unused_parameters) == (False, None)


def test_like_lengths_are_neighbours_and_each_epoch_has_its_order() -> None:
    lengths = [length % 37 + 1 for length in range(0, 700, 7)]
    sampler = LengthGrouped(lengths, batch_size=5, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == list(range(100))
    spread = [abs(lengths[one] - lengths[other]) for one, other in zip(orders[0], orders[0][1:], strict=False)]
    assert math.fsum(spread) / len(spread) < 4
