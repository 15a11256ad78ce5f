"""What two keys of a job say against each other, and what would be right: said before anything is loaded.

Only what can't be, or would be accepted and ignored; what is merely unwise is advice (`planning/advice.py`). Where a
library would refuse it later, with a traceback, the rule says which one. A rule looks at the keys that were stated:
a default never contradicts anybody.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from trainer.job import DataFormat, Method, TrainJob, Variant
from trainer.job_sections import Metric

ADAPTER_ONLY: Final = (
    "rank",
    "alpha",
    "dropout",
    "target_modules",
    "variant",
    "lora_plus_ratio",
    "max_conversion_error",
)
"""What a training of all weights has no use for."""
QUANTIZED_ONLY: Final = ("quantization", "double_quantization")
HELD_OUT_ONLY: Final = (
    "early_stopping",
    "eval_steps",
    "checks.leakage",
    "judge.metrics",
    "judge.command",
    "judge.command_seconds",
    "judge.max_examples",
    "judge.max_new_tokens",
    "judge.min_metrics",
    "judge.max_loss_ratio",
    "judge.min_stop_rate",
)
"""What a job without held-out examples has no use for."""
PERCENT: Final = re.compile(r"\s*(\d{1,3}(?:\.\d+)?)\s*%\s*")


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A sentence with the fix in it, and the keys that it is about."""

    keys: frozenset[str]
    sentence: str


def contradictions(job: TrainJob) -> Iterator[Contradiction]:
    """All of the job's, not only the first."""
    stated = _stated(job)
    yield from _of_method(job, stated)
    yield from _of_variant(job, stated)
    yield from _of_objective(job, stated)
    yield from _of_answers(job, stated)
    yield from _of_held_out(job, stated)
    yield from _of_judge(job, stated)
    yield from _of_metrics(job)
    yield from _of_steps(job, stated)


def _stated(job: TrainJob) -> frozenset[str]:
    """The keys that the job or its preset have; those of sections as `judge.command`."""
    inner = {f"checks.{key}" for key in job.checks.model_fields_set} if "checks" in job.model_fields_set else set()
    if "judge" in job.model_fields_set:
        inner |= {f"judge.{key}" for key in job.judge.model_fields_set}
    return frozenset(job.model_fields_set | inner)


def _value(job: TrainJob, key: str) -> object:
    section, dot, inner = key.partition(".")
    return getattr(getattr(job, section), inner) if dot else getattr(job, key)


def _wrong(sentence: str, *keys: str) -> Contradiction:
    return Contradiction(frozenset(key.partition(".")[0] for key in keys), sentence)


def _among(stated: frozenset[str], keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key in stated]


def _named(keys: Iterable[str]) -> str:
    return ", ".join(keys)


def _of_method(job: TrainJob, stated: frozenset[str]) -> Iterator[Contradiction]:
    if not job.method.is_adapter and (useless := _among(stated, ADAPTER_ONLY)):
        yield _wrong(
            f"method full trains all weights: leave out {_named(useless)}, or take method: lora", "method", *useless
        )
    if job.method is not Method.QLORA and (useless := _among(stated, QUANTIZED_ONLY)):
        yield _wrong(f"{_named(useless)}: is for method qlora: leave it out, or take method: qlora", "method", *useless)
    if job.quantization == "int8" and "double_quantization" in stated and job.double_quantization:
        yield _wrong(
            "double_quantization is of NF4's scales, and int8 has none: leave it out, or take quantization: nf4",
            "quantization",
            "double_quantization",
        )

    if job.method is Method.QLORA and job.quantization == "int8" and job.packing:
        # bitsandbytes picks the columns that it leaves out of the 8 bits by all of a batch: the self-test refuses it
        yield _wrong(
            "packing: with quantization int8, what an example comes to depends on those beside it: "
            "take quantization: nf4, or leave out packing",
            "packing",
            "quantization",
        )


def _of_variant(job: TrainJob, stated: frozenset[str]) -> Iterator[Contradiction]:
    if not job.method.is_adapter:
        return  # said already
    if job.variant is Variant.PISSA and job.method is Method.QLORA:  # PEFT: TypeError in pissa_init
        yield _wrong(
            "variant pissa begins with a part of the base's own weights, which qlora holds in 4 or 8 bits: "
            "take method: lora, or variant: lora",
            "variant",
            "method",
        )
    if job.variant is Variant.PISSA and job.objective == "dpo":  # TRL: the reference is the base without the adapter
        yield _wrong(
            "objective dpo compares with the base as it was, and variant pissa takes a part out of it: "
            "take variant: lora",
            "variant",
            "objective",
        )
    if job.variant.is_servable and "max_conversion_error" in stated:
        yield _wrong(
            f"max_conversion_error: variant {job.variant} is served as it is, and nothing is converted: leave it out",
            "variant",
            "max_conversion_error",
        )
    if isinstance(job.target_modules, tuple):
        if not job.target_modules:
            yield _wrong("target_modules: names no module: leave it out for all linear layers", "target_modules")
        if "all-linear" in job.target_modules:
            yield _wrong("target_modules: write all-linear by itself, not in a list", "target_modules")


def _of_objective(job: TrainJob, stated: frozenset[str]) -> Iterator[Contradiction]:
    if job.objective == "sft":
        if job.format is DataFormat.PREFERENCE:
            yield _wrong(
                "format preference has two answers to a prompt, which objective sft can't learn from: "
                "take objective: dpo",
                "objective",
                "format",
            )
        if "beta" in stated:
            yield _wrong("beta is for objective dpo: leave it out", "objective", "beta")
        if job.packing and job.group_by_length:
            yield _wrong(
                "packing fills rows with examples of any length: leave out group_by_length",
                "packing",
                "group_by_length",
            )
        return
    if job.format not in {DataFormat.AUTO, DataFormat.PREFERENCE}:
        yield _wrong(
            f"objective dpo learns from pairs of answers: take format: preference, not {job.format}",
            "objective",
            "format",
        )
    for key in ("packing", "group_by_length", "probe_memory"):  # TRL's DPO has no such rows; pairs are not probed
        if getattr(job, key):
            yield _wrong(f"{key} is for objective sft: leave it out", "objective", key)


def _of_answers(job: TrainJob, stated: frozenset[str]) -> Iterator[Contradiction]:
    if job.answers != "json":
        if job.answer_schema is not None:
            yield _wrong("answer_schema is for JSON: add answers: json", "answers", "answer_schema")
        if "checks.invalid_json" in stated:
            yield _wrong("checks.invalid_json is for JSON: leave it out, or add answers: json", "answers", "checks")
    elif job.format is DataFormat.TEXT:
        yield _wrong("format text has no answers: leave out answers: json", "answers", "format")


def _of_held_out(job: TrainJob, stated: frozenset[str]) -> Iterator[Contradiction]:
    if isinstance(job.held_out, str):
        if percent := PERCENT.fullmatch(job.held_out):
            yield _wrong(
                f"held_out: {percent[1]} % is no file: write the share as {float(percent[1]) / 100:g}", "held_out"
            )
        return
    if job.held_out > 0:
        return
    needy = [key for key in HELD_OUT_ONLY if key in stated and _value(job, key) is not None]
    if needy:
        yield _wrong(
            f"{_named(needy)}: can't be without held-out examples: take held_out: 0.1, or leave it out",
            "held_out",
            *needy,
        )


def _of_judge(job: TrainJob, stated: frozenset[str]) -> Iterator[Contradiction]:
    useless = sorted(key for key in stated if key.startswith("judge.") and key != "judge.enabled")
    if not job.judge.enabled and useless:
        yield _wrong(f"judge.enabled: false measures nothing: leave out {_named(useless)}", "judge")
    elif not job.judge.regression and "judge.max_regression_drop" in stated:
        yield _wrong("judge.max_regression_drop needs what judge.regression: false leaves out: drop one", "judge")


def _of_metrics(job: TrainJob) -> Iterator[Contradiction]:
    if not job.judge.enabled or job.held_out == 0:
        return  # said already
    asked, least = job.judge.metrics or (), job.judge.min_metrics
    if job.format is DataFormat.TEXT and (asked or least):
        yield _wrong(
            "format text has no answers to measure: leave out judge.metrics and judge.min_metrics, and keep "
            "judge.max_loss_ratio",
            "format",
            "judge",
        )
        return
    for metric in asked:
        if lacks := _lacks(metric, job):
            yield _wrong(f"judge.metrics: {metric} {lacks}", "judge", "objective", "answer_schema")
    if job.judge.command is not None and "command" not in job.metrics:
        yield _wrong("judge.command is never run: add command to judge.metrics", "judge")
    for name in least:
        if name not in job.metrics:
            yield _wrong(
                f"judge.min_metrics: {name} is not among what is computed, {_named(job.metrics) or 'nothing'}"
                f"{_cure(name)}",
                "judge",
                "answers",
                "answer_schema",
                "objective",
            )


def _lacks(metric: Metric, job: TrainJob) -> str:
    """What the metric can't be computed without; empty if nothing is missing."""
    match metric:
        case "json_schema" if job.answer_schema is None:
            return "needs a schema: add answers: json and answer_schema: FILE"
        case "command" if job.judge.command is None:
            return "needs one: add judge.command: COMMAND"
        case "preference" if job.objective == "sft":
            return "is of pairs of answers: take objective: dpo"
        case _:
            return ""


def _cure(metric: str) -> str:
    """What would make it computed, in words."""
    match metric:
        case "json_valid":
            return "; for it add answers: json"
        case "preference":
            return "; it is for objective: dpo"
        case "json_schema":
            return "; for it add answers: json and answer_schema: FILE"
        case "command":
            return "; for it add judge.command: COMMAND"
        case _:
            return ""


def _of_steps(job: TrainJob, stated: frozenset[str]) -> Iterator[Contradiction]:
    if job.max_steps is None:
        return
    if "epochs" in stated:
        yield _wrong("give epochs or max_steps, not both", "epochs", "max_steps")
    if job.eval_steps is not None and job.eval_steps > job.max_steps:
        yield _wrong(
            f"eval_steps: {job.eval_steps} comes after the last of max_steps: {job.max_steps}: "
            f"take eval_steps: {max(1, job.max_steps // 10)}, or leave it out",
            "eval_steps",
            "max_steps",
        )
