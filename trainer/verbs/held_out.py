"""Whose held-out examples a verb judges by: a job's, a data file's, or those of the run that is judged."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.dataset import Row, split_data
from trainer.errors import DatasetError, JobError
from trainer.job import TrainJob
from trainer.job_file import job_of, read_job
from trainer.progress import Narrator
from trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from trainer.judging.values import Task
NO_BASE = "none"
"""What a job's base is called where only its data and rules are looked at."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The rules to judge by, as a job has them, and what its names are relative to."""

    job: TrainJob
    beside: Path
    job_path: Path | None = None


def read_asked(
    source: str, *, job_path: Path | None, data: str | None, overrides: dict[str, str], least: dict[str, float]
) -> Asked:
    """What to judge by. A source that is a run's folder knows its own job. `least` takes the place of min_metrics.

    Raises:
        JobError: neither is there, or both; or the job is none.
    """
    if job_path is not None and data is not None:
        raise JobError("--job and --data: give one of them; a job names its data.")
    wanted = overrides | ({"judge.min_metrics": json.dumps(least)} if least else {})
    if job_path is not None:
        return Asked(read_job(job_path, wanted), job_path.absolute().parent, job_path)
    if data is not None:
        file = str(Path(data).absolute())
        return Asked(job_of({"base": NO_BASE, "data": file, "held_out": file}, wanted, data), Path.cwd())
    if not (Path(source) / "started.json").is_file():
        raise JobError(f"{source}: is no run, so it does not say what to judge by: give --job JOB.YAML or --data FILE.")
    started = RunFolder(Path(source)).started_as()
    job_file = Path(started.job_file)
    return Asked(job_of(started.stated, wanted, str(job_file)), job_file.parent, job_file)


def read_task(asked: Asked, tokenizer: Any, narrator: Narrator) -> "Task":  # noqa: ANN401  — transformers
    """The held-out rows in the base's tokens; rows that its template refuses or that are too long are left out.

    Raises:
        DatasetError: the data can't be read, or no row is left.
    """
    from trainer.judging.of_job import task_of  # noqa: PLC0415  — with torch
    from trainer.supervision import AnyExample, TemplateRefusal, examples_of  # noqa: PLC0415  — with it

    split = split_data(asked.job, asked.beside)
    rows: list[Row] = []
    examples: list[AnyExample] = []
    held_out = split.held_out
    for row, example in zip(held_out.rows, examples_of(tokenizer, held_out.rows), strict=True):
        if not isinstance(example, TemplateRefusal) and example.length <= asked.job.max_length and example.learned:
            rows.append(row)
            examples.append(example)
    _tell(held_out.rows, rows, held_out.name, narrator)
    return task_of(asked.job, rows, examples, split.answer_schema)


def _tell(all_rows: Sequence[Row], rows: Sequence[Row], name: str, narrator: Narrator) -> None:
    if all_rows and not rows:
        raise DatasetError(f"{name}: no held-out row can be judged by: run `lorikeet train check` for the reasons.")
    if len(rows) < len(all_rows):
        narrator.say(f"{len(all_rows) - len(rows)} held-out rows are too long or refused by the template: left out")
    if not all_rows:
        narrator.say(f"{name}: nothing is held out, so only general abilities are judged")
