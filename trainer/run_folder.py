"""A run's folder: what was asked, what was told, what came of it, and run.json, which is written last.

Invariants: `adapter/` (or `model/`) is whole or not there; a folder with run.json is a finished run; a folder is a
run's if it holds started.json, and nothing is ever removed from any other; one process at a time works in it.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import IO, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from adapters import sync_to_disk
from trainer.errors import RunError
from trainer.job import TrainJob
from trainer.step import Told
from trainer.whole_checkpoint import last_whole_checkpoint

Record = TypeVar("Record", bound=BaseModel)


class Started(BaseModel):
    """What started.json says of a run: what it is made of, so that nothing else is ever gone on with."""

    model_config = ConfigDict(frozen=True, extra="allow")

    digest: str
    """Of the job's recipe, the data and the base together."""
    job_file: str
    """Where the job's relative names are meant from."""
    dataset_fingerprint: str
    base: str
    base_fingerprint: str
    stated: dict[str, Any]
    """The job's keys, as far as it or its preset state them."""
    job: dict[str, Any]
    """Every key with its value, defaults too."""


class RunRecord(BaseModel):
    """What run.json says of a finished run. Fields that a later version wrote are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    status: str
    digest: str
    """Of the job's recipe, the data and the base together; `dataset_fingerprint` and `base_fingerprint` alone."""
    dataset_fingerprint: str
    base_fingerprint: str
    base: str
    method: str = "lora"
    precision: str
    steps: int
    tokens: int
    final_loss: float
    held_out_loss: float | None = None
    kept_step: int | None = None
    """Whose weights these are, where early stopping kept the best."""
    seconds: float
    """Of the last attempt, all of it; of the training alone, in all attempts:"""
    training_seconds: float | None = None
    finished_at: datetime
    versions: dict[str, str]
    """The libraries that made the weights."""
    judge: dict[str, Any] | None = None
    """The rules that its report was made by."""
    conversion: dict[str, Any] | None = None
    """What it lost where it had to be made plain LoRA."""


class RunFolder:
    """One run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.adapter = path / "adapter"
        self.model = path / "model"
        self.trained = path / "trained"
        self.checkpoints = path / "checkpoints"
        self.trackers = path / "trackers"
        self.task = path / "task"

    @property
    def made(self) -> Path:
        """What a server loads: the adapter's folder, or the model's."""
        return self.model if self.model.is_dir() else self.adapter

    def finished(self, digest: str) -> RunRecord | None:
        """The record of the finished run of `digest`, if that is what this folder holds."""
        record = _read(RunRecord, self.path / "run.json")
        if record is None or record.status != "finished" or record.digest != digest:
            return None
        return record if self.adapter.is_dir() or self.model.is_dir() else None

    def started_as(self) -> Started:
        """What the run in it, finished or not, was started as. Raises RunError."""
        found = _read(Started, self.path / "started.json")
        if found is None:
            raise RunError(f"{self.path}: is no run's folder: it holds no started.json.")
        return found

    def holds_another(self, digest: str) -> bool:
        """Whether what would be cleared away is the work of a run of something else."""
        found = _read(Started, self.path / "started.json")
        is_worth_something = self.last_checkpoint is not None or (self.path / "run.json").exists()
        return found is not None and found.digest != digest and is_worth_something

    def is_interrupted(self, digest: str) -> bool:
        """Whether it holds a run of `digest` that did not come to its end, and has a checkpoint to go on from."""
        found = _read(Started, self.path / "started.json")
        return (
            found is not None
            and found.digest == digest
            and self.finished(digest) is None
            and self.last_checkpoint is not None
        )

    @property
    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that is whole, if any."""
        return last_whole_checkpoint(self.checkpoints)

    def trained_in(self, job: TrainJob) -> Path:
        """Where what is trained is written: what no server loads waits in `trained/` for its conversion."""
        if not job.method.is_adapter:
            return self.model
        return self.adapter if job.is_served_as_trained else self.trained

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for one process; made if missing.

        Raises:
            RunError: another process is running in it, or it holds files that are not a run's.
        """
        self.require_ours()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise RunError(f"{self.path}: can't be used as the run's folder: {error.strerror}.") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"{self.path}: this job is being run by another process.") from error
            yield

    def begin(self, started: Started) -> None:
        """Clear it of an earlier run, and write what this one is."""
        remove(self.path / "run.json")  # first of all: it is finished no more
        for entry in self.path.iterdir():
            if entry.name not in {".lock", "started.json"}:  # which says until the end whose folder it is
                remove(entry)
        self.write("started.json", started.model_dump_json(indent=2) + "\n")
        self.write("job.yaml", yaml.safe_dump(started.stated, sort_keys=False))

    def write(self, name: str, text: str) -> None:
        """Write one of its files, whole or not at all, for good."""
        path = self.path / name
        partial = path.with_name(f"{name}.partial")
        partial.write_text(text, encoding="utf-8")
        sync_to_disk(partial)
        partial.rename(path)
        sync_to_disk(self.path)

    @contextmanager
    def metrics(self, *, after_step: int) -> Iterator["Metrics"]:
        """metrics.jsonl, open for the run; of an earlier attempt, the lines up to `after_step` stay."""
        path = self.path / "metrics.jsonl"
        kept = [line for line in _lines(path) if _step_of(line) <= after_step]
        with path.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in kept)
            yield Metrics(file)

    @contextmanager
    def staged(self, folder: Path) -> Iterator[Path]:
        """A folder to write in; it becomes `folder`, one of this run's, when the block ends without an error."""
        staging = folder.with_name(f"{folder.name}.partial")
        remove(staging)
        staging.mkdir()
        yield staging
        for file in (*staging.iterdir(), staging):
            sync_to_disk(file)
        remove(folder)
        staging.rename(folder)
        sync_to_disk(self.path)

    def finish(self, record: RunRecord) -> None:
        """Write run.json: from here on the run is finished."""
        self.write("run.json", record.model_dump_json(indent=2) + "\n")

    def require_ours(self) -> None:
        """Raise RunError unless it is a run's folder, or an empty one, or not there yet."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunError(f"{self.path}: the run folder is a file.")
        strange = sorted(
            entry.name for entry in self.path.iterdir() if entry.name not in {".lock", "started.json.partial"}
        )
        if strange and not (self.path / "started.json").is_file():
            raise RunError(f"{self.path}: holds {strange[0]}, which no run made; choose another output folder.")


class Metrics:
    """One JSON line for each thing that is told, on the disk as soon as it is written."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, told: Told) -> None:
        """Append what was told."""
        self._file.write(json.dumps(asdict(told)) + "\n")
        self._file.flush()


def remove(path: Path) -> None:
    """Take away a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read(kind: type[Record], path: Path) -> Record | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # cut off by a crash
        return float("inf")
