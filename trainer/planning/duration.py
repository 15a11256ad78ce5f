"""How long a training takes and what it costs: its floating-point operations over a speed that was measured, or stated.

The operations are exact enough; the speed is not, unless runs of the same method on the same base have been finished
here. Which of the two it is stands in `Duration.basis`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from trainer.job import TrainJob
from trainer.planning.activations import Batch
from trainer.planning.architecture import Architecture, trainable_parameters
from trainer.planning.hardware import Hardware, checkpoints_on
from trainer.run_folder import RunRecord

SPREAD: Final = 1.3
"""How far a run may be off those before it, either way: other work on the machine, other lengths."""
NEWEST: Final = 5
"""Of the finished runs, how many are looked at."""
GIB: Final = 2**30


class Basis(StrEnum):
    """Where a speed is from."""

    MEASURED = "measured"
    """Runs of the same method on the same base, finished here."""
    STATED = "stated"
    """A default for hardware of its class."""


@dataclass(frozen=True, slots=True)
class Speed:
    """FLOP/s that trainings reach, from the slowest to the fastest to be expected, and whose figure that is."""

    slowest: float
    fastest: float
    source: str


CPU_CORE: Final = Speed(12e9, 80e9, "per core: 30 to 60 GFLOP/s in this project's own runs (deploy/PERFORMANCE.md)")
CARDS: Final = (
    (20, Speed(5e12, 30e12, "a card of up to 20 GiB (T4, L4, RTX 4060 to 4080): 10 to 45 % of their peaks")),
    (36, Speed(20e12, 90e12, "a card of 24 to 32 GiB; torchtune: 2,413 to 3,083 tokens/s on 8 B with a 4090")),
    (72, Speed(50e12, 170e12, "a card of 40 to 64 GiB (A100, L40S, A6000): 15 to 55 % of an A100's 312 TFLOP/s")),
    (1 << 20, Speed(80e12, 400e12, "a card of 80 GiB and more; NVIDIA NeMo: 402 TFLOP/s, LoRA on 8 B with an H100")),
)
"""Up to how many GiB: and then what."""


@dataclass(frozen=True, slots=True)
class Duration:
    """How long it takes, as far as that can be told."""

    tokens: int
    """All that are read, padding not counted."""
    steps: int
    flops_per_token: int
    seconds: float
    fastest_seconds: float
    slowest_seconds: float
    basis: Basis
    source: str
    """Whose speed it is, in words."""

    def cost(self, price_per_hour: float) -> dict[str, float]:
        """What it costs: as expected, at the least and at the most."""
        hours = {"expected": self.seconds, "least": self.fastest_seconds, "most": self.slowest_seconds}
        return {name: round(seconds / 3600 * price_per_hour, 4) for name, seconds in hours.items()}


def flops_per_token(job: TrainJob, architecture: Architecture, batch: Batch, *, recomputes: bool) -> int:
    """Floating-point operations for one token of a training step.

    Forward, two for each weight that it passes, and 4 · width · length for attention's two products in each layer (as
    TRL's compute_flops_per_token counts them, which this equals for all weights); the head at the learned positions
    alone. Backward, twice that: once for the gradient of the input, once for that of the weights. [Kaplan 2020, §2.1]
    Frozen weights need only the first, an adapter's few both. Recomputing activations is another pass forward.
    """
    head = architecture.vocabulary * architecture.hidden
    attention = 4 * architecture.attention_width * batch.length * architecture.layers
    forward = 2 * architecture.active_parameters + attention + 2 * head * batch.learned_share
    trained = trainable_parameters(job, architecture) if job.method.is_adapter else 0
    passes = (2 if job.method.is_adapter else 3) + recomputes
    # Attention has no weights: both of its gradients are of its inputs.
    extra = attention if job.method.is_adapter else 0
    return round(forward * passes + extra + 6 * trained)


def duration(
    job: TrainJob,
    architecture: Architecture,
    hardware: Hardware,
    batch: Batch,
    *,
    example_count: int,
    mean_tokens: float,
    measured: tuple[float, ...] = (),
    cores: int = 1,
) -> Duration:
    """How long the job takes for so many examples of so many tokens; `measured`: tokens/s of finished runs like it."""
    recomputes = checkpoints_on(job, hardware)
    flops = flops_per_token(job, architecture, batch, recomputes=recomputes)
    steps = step_count(job, example_count)
    examples = (
        steps * job.batch_size * job.gradient_accumulation if job.max_steps else round(example_count * job.epochs)
    )
    tokens = round(examples * mean_tokens) * (2 if job.objective == "dpo" else 1)
    if measured:
        speeds = (min(measured) / SPREAD, sum(measured) / len(measured), max(measured) * SPREAD)
        source = f"{len(measured)} finished run{'s' * (len(measured) > 1)} of method {job.method} on this base"
    else:
        speed = _stated(hardware)
        parts = 1 if hardware.has_gpu else cores
        slowest, fastest = speed.slowest * parts / flops, speed.fastest * parts / flops
        speeds, source = (slowest, (slowest * fastest) ** 0.5, fastest), speed.source
    return Duration(
        tokens=tokens,
        steps=steps,
        flops_per_token=flops,
        seconds=tokens / speeds[1],
        fastest_seconds=tokens / speeds[2],
        slowest_seconds=tokens / speeds[0],
        basis=Basis.MEASURED if measured else Basis.STATED,
        source=source,
    )


def step_count(job: TrainJob, example_count: int) -> int:
    """Optimizer steps of the whole training."""
    if job.max_steps is not None:
        return job.max_steps
    a_step = job.batch_size * job.gradient_accumulation
    return max(1, round(-(-example_count // a_step) * job.epochs))


def finished_speeds(runs: Path, job: TrainJob, base_fingerprint: str) -> tuple[float, ...]:
    """Tokens/s of the newest finished runs of the job's method on that base."""
    records = sorted(_records(runs), key=lambda record: record.finished_at, reverse=True)
    alike = [
        record.tokens / record.training_seconds
        for record in records
        if record.status == "finished"
        and record.method == job.method
        and record.base_fingerprint == base_fingerprint
        and record.tokens > 0
        and record.training_seconds
    ]
    return tuple(alike[:NEWEST])


def _records(runs: Path) -> Iterator[RunRecord]:
    for file in sorted(runs.glob("*/run.json")):
        try:
            yield RunRecord.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):  # a run that is not ours, or is being removed
            continue


def _stated(hardware: Hardware) -> Speed:
    if not hardware.has_gpu:
        return CPU_CORE
    gib = (hardware.memory_bytes or 24 * GIB) / GIB
    return next(speed for most, speed in CARDS if gib <= most)
