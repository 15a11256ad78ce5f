"""What a recipe is given, and what it leaves in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.job import TrainJob
from trainer.step import OnTold, Step
from trainer.supervision import AnyExample


@dataclass(frozen=True, slots=True)
class Task:
    """One training: the job, its data as tokens, and where things lie."""

    job: TrainJob
    train: Sequence[AnyExample]
    """PreferenceExample for `objective: dpo`, else Example."""
    held_out: Sequence[AnyExample]
    base_folder: Path
    checkpoints: Path
    trackers: Path
    """Where TensorBoard's events go."""
    listeners: Sequence[OnTold]
    resume_from: Path | None = None
    """A whole checkpoint of the same job, data and base."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training left in memory."""

    model: Any
    """peft's PeftModel for an adapter, transformers' PreTrainedModel for all weights."""
    precision: str
    last: Step
    held_out_loss: float | None = None
    """Of the model as it is; None where nothing is held out."""
    kept_step: int | None = None
    """Whose weights these are: the last step's, or the best's."""
