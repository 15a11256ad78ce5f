"""What a job is planned for: this machine, or a card that is only named. Knows nothing of how it is found out."""

import re
from dataclasses import dataclass
from typing import Final, Literal

from trainer.errors import JobError
from trainer.job import TrainJob

Precision = Literal["mixed", "bfloat16", "float32"]

UNITS: Final = {
    unit: 1024**power if binary else 1000**power
    for power, letter in enumerate(("", "k", "m", "g", "t"))
    for unit, binary in ((f"{letter}ib", True), (f"{letter}b", False), (letter, True))
}
"""In lower case; a bare G is GiB, as cards are sold."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where a job is to run."""

    has_gpu: bool
    memory_bytes: int | None
    """Of the GPU, else of the machine; None: not known."""
    has_fast_bfloat16: bool
    """Whether it multiplies matrices in bfloat16 faster than in float32."""
    name: str
    """As it is shown."""


def parse_memory(text: str) -> int:
    """A size in bytes, such as 24GiB, 24G, 80GB or 8589934592. Raises JobError."""
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([a-zA-Z]*)\s*", text, re.ASCII)
    unit = UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None or not float(found[1]) * unit >= 1:
        raise JobError(f"--memory {text}: write a size, such as 24GiB or 80GB.")
    return int(float(found[1]) * unit)


def precision_on(job: TrainJob, hardware: Hardware) -> Precision:
    """What the job's precision comes to there: by the rule of `recipes.base_model.precision_of`."""
    if job.precision != "auto":
        return job.precision
    if not hardware.has_fast_bfloat16:
        return "float32"
    return "bfloat16" if job.method.is_adapter else "mixed"


def checkpoints_on(job: TrainJob, hardware: Hardware) -> bool:
    """Whether the job recomputes activations there instead of keeping them."""
    return hardware.has_gpu if job.gradient_checkpointing is None else job.gradient_checkpointing
