"""What is asked of a job's result: its base beside it, on its held-out rows, by its rules."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.dataset import Row
from trainer.job import TrainJob
from trainer.judging.abilities import shipped_abilities
from trainer.judging.values import Judgement, Side, Task
from trainer.supervision import AnyExample


def task_of(
    job: TrainJob, rows: Sequence[Row], examples: Sequence[AnyExample], schema: Mapping[str, Any] | None
) -> Task:
    """The held-out rows and the same as tokens, in the same places, with the metrics that the job asks for."""
    return Task(
        held_out=tuple(examples), rows=tuple(rows), metrics=job.metrics if rows else (), schema=schema, beta=job.beta
    )


def judgement_of(
    job: TrainJob, task: Task, base: Side, result: Side, *, cache: Path, beside: Path, curve: Path | None = None
) -> Judgement:
    """By the job's rules, and with the regression set that ships unless the job leaves it out.

    `curve` is the run's metrics.jsonl, for the plot.
    """
    return Judgement(
        base=base,
        result=result,
        task=task,
        rules=job.judge,
        abilities=shipped_abilities() if job.judge.regression else None,
        cache=cache,
        precision=job.precision,
        beside=beside,
        curve=curve,
    )
