"""How a training is spread over processes: an accelerate config, and what can't be trained in which of its ways.

Weights are shared out by FSDP, not by ZeRO-3: that leaves empty tensors in the model, and what counts, casts and saves
the trained ones here would have to gather them by DeepSpeed's own means. ZeRO-2 leaves them whole.

Loads neither torch nor accelerate: what is wrong is said before anything is started.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.errors import JobError
from trainer.job import Method, TrainJob, Variant

WHOLE_STAGES: Final = frozenset({0, 1, 2})
"""ZeRO's, in which every process holds all weights."""


class Way(StrEnum):
    """accelerate's `distributed_type`, of those that are supported."""

    CPU = "MULTI_CPU"
    DDP = "MULTI_GPU"
    FSDP = "FSDP"
    DEEPSPEED = "DEEPSPEED"


class AccelerateConfig(BaseModel):
    """What is looked at in a config file; accelerate itself reads the rest, and refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="allow")

    distributed_type: Way
    num_processes: Annotated[int, Field(ge=1)] = 1
    num_machines: Annotated[int, Field(ge=1)] = 1
    mixed_precision: str | None = "no"
    fsdp_config: dict[str, Any] | None = None
    deepspeed_config: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Which config, over how many processes."""

    config_file: Path
    config: AccelerateConfig
    processes: int


def read_spread(config_file: Path, processes: int | None = None) -> Spread:
    """The way that `config_file` tells; `processes` is stronger than what stands in it.

    Raises:
        JobError: it can't be read, or tells of what can't be done here.
    """
    try:
        config = AccelerateConfig.model_validate(yaml.safe_load(config_file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{config_file}: can't be read: {error}.") from error
    except (yaml.YAMLError, ValidationError) as error:
        raise JobError(
            f"{config_file}: is no accelerate config with a distributed_type of {', '.join(Way)}: "
            "begin with one of deploy/accelerate/."
        ) from error
    for complaint in _complaints(config):
        raise JobError(f"{config_file}: {complaint}")
    return Spread(config_file.resolve(), config, processes or config.num_processes)


def require_possible(job: TrainJob, spread: Spread) -> None:
    """Raise JobError if the job can't be trained so."""
    for complaint in _impossible(job, spread.config):
        raise JobError(f"{spread.config_file.name}: {complaint}")
    share_out(job, spread.processes)


def share_out(job: TrainJob, processes: int) -> TrainJob:
    """The job as each of `processes` is to run it: a step is made of the same examples as in one process.

    Raises:
        JobError: a step's examples can't be shared out evenly.
    """
    if job.gradient_accumulation % processes == 0:
        return job.model_copy(update={"gradient_accumulation": job.gradient_accumulation // processes})
    if job.batch_size % processes == 0:
        return job.model_copy(update={"batch_size": job.batch_size // processes})
    raise JobError(
        f"a step of {job.batch_size} × {job.gradient_accumulation} examples can't be shared out to {processes} "
        f"processes: make batch_size or gradient_accumulation a multiple of {processes}."
    )


def _complaints(config: AccelerateConfig) -> Iterator[str]:
    if config.num_machines > 1:
        yield "num_machines: a run is of one machine; take 1."
    if config.mixed_precision not in {None, "no"}:
        yield f"mixed_precision: {config.mixed_precision}: the job's precision decides that; write 'no'."
    if config.distributed_type is Way.FSDP and (config.fsdp_config or {}).get("fsdp_version") != 2:  # noqa: PLR2004
        yield "fsdp_version must be 2: the first can't hold an adapter's float32 beside a base in bfloat16."
    stage = (config.deepspeed_config or {}).get("zero_stage")
    if config.distributed_type is Way.DEEPSPEED and stage not in WHOLE_STAGES:
        yield (
            f"deepspeed_config.zero_stage is {'not said' if stage is None else stage}, and it must be 2 or less, since "
            "weights that ZeRO shares out can't be saved here: take deepspeed-zero2.yaml, or fsdp.yaml to share them."
        )


def _impossible(job: TrainJob, config: AccelerateConfig) -> Iterator[str]:
    way = config.distributed_type
    if way is Way.FSDP or way is Way.DEEPSPEED:
        yield from _impossible_shared(job, way)
    if way is Way.FSDP:
        yield from _impossible_sharded(job)


def _impossible_sharded(job: TrainJob) -> Iterator[str]:
    """Where no process holds all weights."""
    if job.method is Method.QLORA and job.quantization == "int8":
        yield "FSDP can't share out 8-bit weights: take quantization: nf4, or ddp.yaml."
    if job.variant in {Variant.DORA, Variant.PISSA}:
        yield (
            f"variant {job.variant} begins with the base's whole weights, which no process has under FSDP: "
            "take ddp.yaml, or variant: lora."
        )
    if job.objective == "dpo" and not job.method.is_adapter:
        yield (
            "objective dpo with method full needs the reference whole, which no process has under FSDP: "
            "take method: lora, or ddp.yaml."
        )


def _impossible_shared(job: TrainJob, way: Way) -> Iterator[str]:
    """Where each process holds a part of the optimizer's states."""
    if job.optimizer != "adamw":
        yield f"optimizer {job.optimizer} keeps its states by itself, and {way} shares them out: take optimizer: adamw."
    if job.lora_plus_ratio is not None:
        yield f"lora_plus_ratio makes its optimizer before {way} shares it out: leave it out, or take ddp.yaml."
    if job.variant is Variant.ADALORA:
        yield f"variant adalora looks at whole gradients, which {way} shares out: take ddp.yaml, or variant: lora."
