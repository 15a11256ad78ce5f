"""Which of a run's checkpoints are whole, and which of them are kept.

A checkpoint is a folder as transformers lays it out, and whole.json, which is written last: the names and sizes of all
the others. Invariants: a folder without a true whole.json is no checkpoint; an older checkpoint goes only when a newer
one is whole, and whole.json goes first.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from adapters import sync_to_disk

SEAL: Final = "whole.json"
KEPT: Final = 2
"""One more than is needed, for when somebody copies the last but one."""


class Seal(BaseModel):
    """What whole.json says. Fields that a later version wrote are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    step: int
    elapsed_seconds: float
    """Of the training, until now."""
    files: dict[str, int]
    """Name, below the checkpoint → bytes."""


@dataclass(frozen=True, slots=True)
class WholeCheckpoint:
    """A checkpoint that a training can be resumed from."""

    path: Path
    step: int
    elapsed_seconds: float


def seal(checkpoint: Path, *, step: int, elapsed_seconds: float) -> WholeCheckpoint:
    """Put all of the folder on the disk, then say that it is whole."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    for path in files:
        sync_to_disk(path)
    for folder in (checkpoint, *(path for path in checkpoint.rglob("*") if path.is_dir())):
        sync_to_disk(folder)
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    text = Seal(step=step, elapsed_seconds=elapsed_seconds, files=sizes).model_dump_json(indent=2)
    partial = checkpoint / f"{SEAL}.partial"
    partial.write_text(text + "\n")
    sync_to_disk(partial)
    partial.rename(checkpoint / SEAL)
    sync_to_disk(checkpoint)
    sync_to_disk(checkpoint.parent)
    return WholeCheckpoint(checkpoint, step, elapsed_seconds)


def whole_checkpoint(checkpoint: Path) -> WholeCheckpoint | None:
    """What lies in the folder, if it is whole."""
    try:
        found = Seal.model_validate_json((checkpoint / SEAL).read_bytes())
        is_whole = all((checkpoint / name).stat().st_size == size for name, size in found.files.items())
    except (OSError, ValidationError):
        return None
    return WholeCheckpoint(checkpoint, found.step, found.elapsed_seconds) if is_whole and found.files else None


def whole_checkpoints(folder: Path) -> list[WholeCheckpoint]:
    """All that are whole, the oldest step first."""
    found = (whole_checkpoint(path) for path in folder.glob("checkpoint-*"))
    return sorted((checkpoint for checkpoint in found if checkpoint), key=lambda checkpoint: checkpoint.step)


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, if any: what a run is resumed from."""
    whole = whole_checkpoints(folder)
    return whole[-1].path if whole else None


def remove_broken(folder: Path) -> None:
    """Remove what an interrupted writing or removing left."""
    for path in folder.glob("checkpoint-*"):
        if whole_checkpoint(path) is None:
            remove(path)


def remove_older(folder: Path, *, spare: Path | None = None) -> None:
    """Keep the newest, and `spare`: the best so far."""
    for checkpoint in whole_checkpoints(folder)[:-KEPT]:
        if spare is None or checkpoint.path.name != spare.name:
            remove(checkpoint.path)


def remove(checkpoint: Path) -> None:
    """Remove it so that it is never half there and taken for whole."""
    (checkpoint / SEAL).unlink(missing_ok=True)
    sync_to_disk(checkpoint)
    shutil.rmtree(checkpoint)
