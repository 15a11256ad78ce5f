"""Every key of a job with what it comes to and where that is from: nothing that decides a training goes unsaid."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from trainer.contradictions import ADAPTER_ONLY, HELD_OUT_ONLY, QUANTIZED_ONLY
from trainer.job import SMALL_DATASET, Method, TrainJob, Variant
from trainer.presets import keys_of

JOB_FILE: Final = "job file"
DEFAULT: Final = "default"
DERIVED: Final = "derived"
"""From other keys, from the data or from the machine."""


@dataclass(frozen=True, slots=True)
class Explained:
    """What one key comes to."""

    key: str
    """Of a section as `judge.command`."""
    value: Any
    """As JSON would have it; for a derived one that can't be known yet, the rule in words."""
    where: str
    """`job file` (or --set), `preset NAME`, `default` or `derived`."""


def explained(job: TrainJob, example_count: int | None = None) -> list[Explained]:
    """Every key that means something in this job. `example_count` is of those trained on, where it is known already."""
    useless = _useless(job)
    return [found for found in _all(job, _derivations(job, example_count)) if found.key not in useless]


def _all(job: TrainJob, derivations: Mapping[str, Any]) -> Iterator[Explained]:
    preset = keys_of(job.preset)
    for key, value in job.model_dump(mode="json").items():
        section = getattr(job, key)
        if isinstance(section, BaseModel):
            for inner, inner_value in value.items():
                name = f"{key}.{inner}"
                yield _one(
                    name, inner_value, DEFAULT if inner not in section.model_fields_set else JOB_FILE, derivations
                )
            continue
        where = DEFAULT if key not in job.model_fields_set else JOB_FILE
        if where == JOB_FILE and key in preset and preset[key] == value:
            where = f"preset {job.preset}"
        yield _one(key, value, where, derivations)


def _one(key: str, value: Any, where: str, derivations: Mapping[str, Any]) -> Explained:  # noqa: ANN401  — any key's
    if value is None and key in derivations:
        return Explained(key, derivations[key], DERIVED)
    return Explained(key, value, where)


def _derivations(job: TrainJob, example_count: int | None) -> dict[str, Any]:
    """What follows for the keys that are left out."""
    return {
        "output": "a folder of its own below runs in LORIKEET_HOME",
        "dropout": (
            f"0.05 below {SMALL_DATASET} examples, else 0"
            if example_count is None and job.variant is not Variant.PISSA
            else job.dropout_for(example_count or 0)
        ),
        "learning_rate": job.peak_learning_rate,
        "gradient_checkpointing": "on a GPU only",
        "probe_memory": "on a GPU only",
        "eval_steps": "ten times" if job.early_stopping is not None else "at the end only",
        "judge.metrics": list(job.metrics),
        "judge.max_new_tokens": "twice the longest held-out answer, 512 at the most",
    }


def _useless(job: TrainJob) -> frozenset[str]:
    """The keys that mean nothing beside the others."""
    rules = {
        ADAPTER_ONLY: not job.method.is_adapter,
        QUANTIZED_ONLY: job.method is not Method.QLORA,
        ("double_quantization",): job.quantization == "int8",
        ("max_conversion_error",): job.variant.is_servable,
        ("beta",): job.objective == "sft",
        ("packing", "group_by_length", "probe_memory"): job.objective == "dpo",
        ("epochs",): job.max_steps is not None,
        ("answer_schema", "checks.invalid_json"): job.answers != "json",
        ("judge.command_seconds",): job.judge.command is None,
        HELD_OUT_ONLY: job.held_out == 0,
        tuple(f"judge.{key}" for key in type(job.judge).model_fields if key != "enabled"): not job.judge.enabled,
        ("judge.max_regression_drop",): not job.judge.regression,
    }
    return frozenset(key for keys, is_useless in rules.items() if is_useless for key in keys)
