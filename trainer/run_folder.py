"""A run's folder: job.yaml, metrics.jsonl, checkpoints/, adapter/, and run.json, which is written last.

Invariants: `adapter/` is whole or not there; a folder with run.json is a finished run; only files of these names are
ever removed, so a folder that holds anything else is refused; one process at a time works in it.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import IO

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from adapters import sync_to_disk
from trainer.errors import RunError
from trainer.job import TrainJob
from trainer.step import Step

NAMES = frozenset(
    {"job.yaml", "metrics.jsonl", "checkpoints", "adapter", "adapter.partial", "run.json", "run.json.partial", ".lock"}
)


class RunRecord(BaseModel):
    """What run.json says of a finished run. Fields that a later version wrote are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    status: str
    digest: str
    """Of the job's recipe, the data and the base together; `dataset_fingerprint` and `base_fingerprint` alone."""
    dataset_fingerprint: str
    base_fingerprint: str
    base: str
    precision: str
    steps: int
    tokens: int
    final_loss: float
    seconds: float
    finished_at: datetime
    versions: dict[str, str]
    """The libraries that made the weights."""


class RunFolder:
    """One run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.adapter = path / "adapter"
        self.checkpoints = path / "checkpoints"

    def finished(self, digest: str) -> RunRecord | None:
        """The record of the finished run of `digest`, if that is what this folder holds."""
        try:
            record = RunRecord.model_validate_json((self.path / "run.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return None
        return record if record.status == "finished" and record.digest == digest and self.adapter.is_dir() else None

    @property
    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that is whole, if any."""
        whole = [found.parent for found in self.checkpoints.glob("checkpoint-*/trainer_state.json")]
        return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)

    @contextmanager
    def started(self, job: TrainJob) -> Iterator[None]:
        """Hold the folder for one run: made if missing, cleared of an earlier run.

        Raises:
            RunError: another process is running in it, or it holds files that are not a run's.
        """
        self._require_ours()
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"{self.path}: this job is being run by another process.") from error
            _remove(self.path / "run.json")  # first of all: it is finished no more
            for name in NAMES - {".lock"}:
                _remove(self.path / name)
            (self.path / "job.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))
            yield

    @contextmanager
    def metrics(self) -> Iterator["Metrics"]:
        """metrics.jsonl, open for the run."""
        with (self.path / "metrics.jsonl").open("w") as file:
            yield Metrics(file)

    @contextmanager
    def staged_adapter(self) -> Iterator[Path]:
        """A folder to save the adapter in; it becomes `adapter/` when the block ends without an error."""
        staging = self.path / "adapter.partial"
        staging.mkdir()
        yield staging
        for file in (*staging.iterdir(), staging):
            sync_to_disk(file)
        staging.rename(self.adapter)
        sync_to_disk(self.path)

    def finish(self, record: RunRecord) -> None:
        """Write run.json: from here on the run is finished."""
        path = self.path / "run.json"
        partial = path.with_suffix(".json.partial")
        partial.write_text(record.model_dump_json(indent=2) + "\n")
        sync_to_disk(partial)
        partial.rename(path)
        sync_to_disk(self.path)

    def _require_ours(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunError(f"{self.path}: the run folder is a file.")
        strange = sorted(entry.name for entry in self.path.iterdir() if entry.name not in NAMES)
        if strange:
            raise RunError(f"{self.path}: holds {strange[0]}, which no run made; choose another output folder.")


class Metrics:
    """One JSON line a step, on the disk as soon as it is written."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, step: Step) -> None:
        """Append a step."""
        self._file.write(json.dumps(asdict(step)) + "\n")
        self._file.flush()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
