"""What a recipe tells of each optimizer step."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step, just done. A line of metrics.jsonl."""

    step: int
    total_steps: int
    loss: float
    """Mean over the learned tokens of this step's examples, before the step."""
    learning_rate: float
    tokens: int
    """Read since the start, padding not counted."""
    elapsed_seconds: float
    """Since the start, checkpoints included."""
    tokens_per_second: float
    """Over this step alone."""


OnStep = Callable[[Step], None]
