"""Going on from a checkpoint as if nothing had been, to the end and what comes after it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerState

from trainer.errors import RunError
from trainer.job import TrainJob
from trainer.step import Evaluation
from trainer.whole_checkpoint import WholeCheckpoint, whole_checkpoint

STATE = "trainer_state.json"


def require_whole(checkpoint: Path | None) -> WholeCheckpoint | None:
    """The checkpoint to resume from. Raises RunError if it is not whole."""
    if checkpoint is None:
        return None
    found = whole_checkpoint(checkpoint)
    if found is None:
        raise RunError(f"{checkpoint}: is not a whole checkpoint: resume from another, or train anew.")
    return found


def batch_size(checkpoint: Path | None, job: TrainJob) -> int | None:
    """How many of a step's examples went through at once before: split otherwise, sums are rounded otherwise."""
    if checkpoint is None:
        return None
    before = json.loads((checkpoint / STATE).read_text()).get("train_batch_size")
    return before if before and job.batch_size % before == 0 else None


def train(trainer: Any, checkpoint: Path | None) -> None:  # noqa: ANN401  — transformers' Trainer
    """Train, from the checkpoint on; if that was the last, bring back what the training left."""
    if checkpoint is None:
        trainer.train()
        return
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    if not _had_ended(state):
        trainer.train(resume_from_checkpoint=str(checkpoint))
        return
    # transformers would take one more step if the epoch is not full
    trainer._load_from_checkpoint(str(checkpoint))  # noqa: SLF001  — what its own train() begins with
    trainer.state = state
    handler = trainer.callback_handler
    trainer.control = handler.on_train_begin(trainer.args, state, trainer.control)
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint:
        trainer._load_best_model()  # noqa: SLF001  — and ends with
    trainer.control = handler.on_train_end(trainer.args, state, trainer.control)


def final_evaluation(trainer: Any, evaluations: Sequence[Evaluation]) -> Evaluation:  # noqa: ANN401
    """The held-out loss of the weights as they are now: the last step's, or the best that was brought back."""
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
        return next(each for each in evaluations if each.step == trainer.state.best_global_step)
    if not evaluations or evaluations[-1].step != trainer.state.global_step:
        trainer.evaluate()
    return evaluations[-1]


def _had_ended(state: TrainerState) -> bool:
    """By its number of steps, or early; a signal ends no training."""
    control = state.stateful_callbacks.get("TrainerControl", {}).get("args", {})
    return bool(state.global_step >= state.max_steps or control.get("should_training_stop"))
