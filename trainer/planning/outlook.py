"""What can be told of a job before anything of it is loaded: sizes, whether it fits, how long it takes, what is wise.

The verb `plan` shows it; `estimate_for` is for a run that wants to warn before it begins.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from trainer.job import Method, TrainJob
from trainer.planning.activations import Batch
from trainer.planning.advice import advise, recommend
from trainer.planning.architecture import Architecture, trainable_parameters
from trainer.planning.duration import Duration, duration, step_count
from trainer.planning.facts import HEADROOM, Advice, Facts, Goal, Policy, Recommendation
from trainer.planning.hardware import Hardware, Precision, precision_on
from trainer.planning.memory import Memory, estimate

ASSUMED_LEARNED_SHARE: Final = 0.5
"""Of an example's tokens, where the data are not known: answers as long as their prompts."""
ASSUMED_LENGTH_SHARE: Final = 0.5
"""The mean example's length over the longest's, where the data are not known."""
HALVINGS: Final = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known, or assumed, of the data."""

    example_count: int | None
    """Of those trained on."""
    longest_tokens: int
    mean_tokens: float
    learned_share: float
    is_assumed: bool
    """Whether the lengths are assumptions rather than read from data."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """All of that."""

    job: TrainJob
    architecture: Architecture
    hardware: Hardware
    shape: Shape
    precision: Precision
    trainable_parameters: int
    memory: Memory
    fits: bool | None
    """None: the memory there is is not known."""
    would_fit: tuple[str, ...]
    """If it does not: changes of the job that make it fit, the least costly first."""
    recommendation: Recommendation
    advice: tuple[Advice, ...]
    duration: Duration | None
    """None: without the number of examples, or of steps, nobody knows."""


def assumed_shape(job: TrainJob, example_count: int | None) -> Shape:
    """Of data that nobody has looked at: the longest fills max_length."""
    mean = job.max_length * ASSUMED_LENGTH_SHARE
    return Shape(example_count, job.max_length, mean, ASSUMED_LEARNED_SHARE, is_assumed=True)


def batch_of(job: TrainJob, shape: Shape) -> Batch:
    """The largest batch that the job makes of such data; DPO's holds each prompt with both of its answers."""
    rows = job.batch_size * (2 if job.objective == "dpo" else 1)
    length = job.max_length if job.packing else min(shape.longest_tokens, job.max_length)
    return Batch(
        rows=rows,
        length=length,
        learned_share=shape.learned_share,
        is_padded=rows > 1 and not job.packing,
        has_dropout=job.method.is_adapter and job.dropout_for(shape.example_count or 0) > 0,
    )


def estimate_for(job: TrainJob, architecture: Architecture, hardware: Hardware, shape: Shape | None = None) -> Memory:
    """What the job takes at its peak there; without a shape, if its longest examples fill max_length."""
    return estimate(job, architecture, hardware, batch_of(job, shape or assumed_shape(job, None)))


def make_outlook(
    job: TrainJob,
    architecture: Architecture,
    hardware: Hardware,
    shape: Shape,
    *,
    measured: tuple[float, ...] = (),
    cores: int = 1,
    goal: Goal | None = None,
    policy: Policy = Policy.LORA_FIRST,
) -> Outlook:
    """Look ahead. Raises JobError for targets that the base does not have."""
    batch = batch_of(job, shape)
    memory = estimate(job, architecture, hardware, batch)
    steps = step_count(job, shape.example_count or 0) if shape.example_count or job.max_steps else None
    facts = Facts(
        parameters=architecture.total_parameters,
        memory_needed={
            method: _least(_changed(job, {"method": method}), architecture, hardware, shape) for method in Method
        },
        memory_available=hardware.memory_bytes,
        has_gpu=hardware.has_gpu,
        example_count=shape.example_count,
        steps=steps,
        goal=goal,
        policy=policy,
    )
    ahead = duration(
        job,
        architecture,
        hardware,
        replace(batch, length=max(1, round(shape.mean_tokens))),
        example_count=shape.example_count or 0,
        mean_tokens=shape.mean_tokens,
        measured=measured,
        cores=cores,
    )
    fits = _fits(memory, hardware)
    return Outlook(
        job=job,
        architecture=architecture,
        hardware=hardware,
        shape=shape,
        precision=precision_on(job, hardware),
        trainable_parameters=trainable_parameters(job, architecture),
        memory=memory,
        fits=fits,
        would_fit=tuple(_remedies(job, architecture, hardware, shape)) if fits is False else (),
        recommendation=recommend(facts),
        advice=advise(job, facts),
        duration=ahead if steps else None,
    )


def _fits(memory: Memory, hardware: Hardware) -> bool | None:
    return None if hardware.memory_bytes is None else memory.total <= HEADROOM * hardware.memory_bytes


def _least(job: TrainJob, architecture: Architecture, hardware: Hardware, shape: Shape) -> int:
    """What the job needs, its step cut into smaller batches as far as it takes to fit: what is learned stays."""
    sizes = [job.batch_size, *(job.batch_size // parts for parts in HALVINGS if job.batch_size % parts == 0)]
    needs = [estimate_for(_changed(job, {"batch_size": size}), architecture, hardware, shape) for size in sizes]
    return next((need for need in needs if _fits(need, hardware) is not False), needs[-1]).total


def _changed(job: TrainJob, keys: Mapping[str, Any]) -> TrainJob:
    """The job with other keys. What the keys of another method say is ignored, not refused: it is only weighed."""
    return job.model_copy(update=dict(keys))


def _remedies(job: TrainJob, architecture: Architecture, hardware: Hardware, shape: Shape) -> list[str]:
    """Single changes that make it fit, and if there is none, all of them together."""
    found: dict[tuple[str, ...], str] = {}
    for keys, sentence in _changes(job):
        if tuple(keys) not in found and _helps(job, keys, architecture, hardware, shape):
            found[tuple(keys)] = sentence  # of several smaller batches, the largest
    if found:
        return list(found.values())
    smallest = {"method": Method.QLORA, "quantization": "nf4", "batch_size": 1, "gradient_checkpointing": True}
    if _helps(job, smallest, architecture, hardware, shape):
        return ["method: qlora, with batch_size: 1 and gradient_checkpointing: true"]
    return []


def _helps(
    job: TrainJob, keys: Mapping[str, Any], architecture: Architecture, hardware: Hardware, shape: Shape
) -> bool:
    return _fits(estimate_for(_changed(job, keys), architecture, hardware, shape), hardware) is True


def _changes(job: TrainJob) -> list[tuple[dict[str, Any], str]]:
    """From the one that changes least of what is learned: first how the step is cut, then the method."""
    changes: list[tuple[dict[str, Any], str]] = []
    for parts in HALVINGS:
        if job.batch_size % parts == 0:
            size, accumulation = job.batch_size // parts, job.gradient_accumulation * parts
            sentence = f"batch_size: {size} with gradient_accumulation: {accumulation} (the same steps)"
            changes.append(({"batch_size": size, "gradient_accumulation": accumulation}, sentence))
    if not job.gradient_checkpointing:
        changes.append(({"gradient_checkpointing": True}, "gradient_checkpointing: true (a third more time)"))
    changes.append(
        ({"max_length": job.max_length // 2}, f"max_length: {job.max_length // 2}, if the examples allow it")
    )
    if job.optimizer == "adamw" and job.method is Method.FULL:
        changes.append(({"optimizer": "adamw_8bit"}, "optimizer: adamw_8bit"))
    if job.method is Method.FULL:
        changes.append(({"method": Method.LORA}, "method: lora"))
    if job.method is not Method.QLORA:
        changes.append(({"method": Method.QLORA}, "method: qlora"))
    return changes
