"""What a recipe tells while it runs. Each is a line of metrics.jsonl, and says in `event` which one it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step, just done."""

    step: int
    total_steps: int
    loss: float
    """Mean over the learned tokens of this step's examples, before the step."""
    learning_rate: float
    tokens: int
    """Read since the start, padding not counted."""
    elapsed_seconds: float
    """Since the start, evaluations and checkpoints included; a resumed run counts on."""
    tokens_per_second: float
    """Over this step alone, without the evaluation and the checkpoint that may follow it."""
    gradient_norm: float = 0.0
    """Before it was clipped."""
    memory_bytes: int = 0
    """The most that was held so far: by the device on a GPU, else by the process."""
    reward_margin: float | None = None
    """DPO's: how much more the chosen answers gained on the reference than the rejected, times beta."""
    event: Literal["step"] = "step"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The held-out loss after a step."""

    step: int
    held_out_loss: float
    """Mean over the learned tokens of all held-out examples; for DPO, over the pairs."""
    seconds: float
    is_best: bool
    """Better than every earlier one of the run."""
    event: Literal["evaluation"] = "evaluation"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint is whole, and lies where a power cut leaves it."""

    step: int
    name: str
    seconds: float
    event: Literal["checkpoint"] = "checkpoint"


@dataclass(frozen=True, slots=True)
class Advice:
    """What the curve says, and what to change; nothing is changed by itself."""

    step: int
    kind: Literal["nothing_to_learn", "dead_adapter", "flat", "noisy", "rising", "plateau", "jitter"]
    sentence: str
    event: Literal["advice"] = "advice"


@dataclass(frozen=True, slots=True)
class Fitted:
    """What the longest batch took, and how the step's examples are split so that it fits."""

    step: int
    batch_size: int
    gradient_accumulation: int
    """Times batch_size: what the job asks for, as ever."""
    peak_bytes: int
    limit_bytes: int
    event: Literal["fitted"] = "fitted"


@dataclass(frozen=True, slots=True)
class Packed:
    """How the examples were put into rows, and that they don't see each other there."""

    step: int
    examples: int
    rows: int
    filled: float
    """The share of the rows' tokens that are real."""
    difference: float
    """The largest between a packed token's log-probability and the same token's alone."""
    event: Literal["packed"] = "packed"


Told = Step | Evaluation | Checkpoint | Advice | Fitted | Packed
"""Every one has `step` and `event`."""
OnTold = Callable[[Told], None]
