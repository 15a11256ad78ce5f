"""A task, what is told while it runs, and what came of it, as files: how processes of one run hand them to each other.

task.json  train.jsonl  held_out.jsonl    written by the process that launches
first.pid  told.jsonl                     by the first of the launched; what it tells line by line
outcome.json                              by the same, at last: without it, they failed
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, get_args

from trainer.job import TrainJob
from trainer.recipes.task import Task
from trainer.step import OnTold, Step, Told
from trainer.supervision import Example, PreferenceExample

TASK: Final = "task.json"
TRAIN: Final = "train.jsonl"
HELD_OUT: Final = "held_out.jsonl"
TOLD: Final = "told.jsonl"
PID: Final = "first.pid"
OUTCOME: Final = "outcome.json"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training came to, beside the files that it saved."""

    precision: str
    last: Step
    held_out_loss: float | None
    kept_step: int | None


@dataclass(frozen=True, slots=True)
class Order:
    """A task for launched processes: where to save what, and who waits for it."""

    task: Task
    out: Path
    base_name: str
    launcher_pid: int


def write_order(order: Order, folder: Path) -> None:
    """Write all that a launched process needs."""
    task = order.task
    _write_lines(folder / TRAIN, task.train)
    _write_lines(folder / HELD_OUT, task.held_out)
    stated = {
        "job": task.job.model_dump(mode="json", exclude_unset=True),
        "base_folder": str(task.base_folder.absolute()),
        "checkpoints": str(task.checkpoints.absolute()),
        "trackers": str(task.trackers.absolute()),
        "resume_from": str(task.resume_from.absolute()) if task.resume_from else None,
        "out": str(order.out.absolute()),
        "base_name": order.base_name,
        "launcher_pid": order.launcher_pid,
    }
    (folder / TASK).write_text(json.dumps(stated, indent=2) + "\n")


def read_order(folder: Path, listeners: Sequence[OnTold]) -> Order:
    """As it was written, but for who listens."""
    stated = json.loads((folder / TASK).read_bytes())
    task = Task(
        job=TrainJob.model_validate_json(json.dumps(stated["job"])),
        train=_read_lines(folder / TRAIN),
        held_out=_read_lines(folder / HELD_OUT),
        base_folder=Path(stated["base_folder"]),
        checkpoints=Path(stated["checkpoints"]),
        trackers=Path(stated["trackers"]),
        listeners=listeners,
        resume_from=Path(stated["resume_from"]) if stated["resume_from"] else None,
    )
    return Order(task, Path(stated["out"]), stated["base_name"], stated["launcher_pid"])


def as_line(told: Told) -> str:
    """A line of told.jsonl."""
    return json.dumps(asdict(told)) + "\n"


def from_line(line: str) -> Told:
    """The same again."""
    stated = json.loads(line)
    kinds: dict[str, type[Told]] = {kind.__dataclass_fields__["event"].default: kind for kind in get_args(Told)}
    return kinds[stated["event"]](**stated)


def write_outcome(outcome: Outcome | dict[str, Any], folder: Path) -> None:
    """Written last, and whole or not at all."""
    stated = asdict(outcome) if isinstance(outcome, Outcome) else outcome
    partial = folder / f"{OUTCOME}.partial"
    partial.write_text(json.dumps(stated) + "\n")
    partial.rename(folder / OUTCOME)


def _write_lines(path: Path, examples: Iterable[Any]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(asdict(example)) + "\n" for example in examples)


def _read_lines(path: Path) -> Any:  # noqa: ANN401  — a list of one kind of them
    with path.open() as file:
        read = [json.loads(line) for line in file]
    return [Example(**each) if "labels" in each else PreferenceExample(**each) for each in read]
