"""Which rows are held out: decided by what a row says and the seed, before anything is cleaned, and then frozen.

Invariants: the same rows and seed are the same split; a row that is added or removed moves no other (but for the one
that is held out where chance takes none); rows that say the same, but for case and white space, are on one side.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from trainer.dataset.records import as_line, fingerprint, gist
from trainer.dataset.values import Dataset, Row

FEWEST_ROWS: Final = 10
"""Below so many, none is held out: they would be missed, and would tell nothing."""


def split(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """The rows to train on, and about `share` of them to hold out: at least one of FEWEST_ROWS, none of fewer."""
    if share == 0 or len(dataset.rows) < FEWEST_ROWS:
        return dataset, side(dataset, ())
    draws = [_draw(row, seed) for row in dataset.rows]
    limit = max(share, min(draws))
    is_held_out = [draw <= limit for draw in draws]
    if all(is_held_out):
        return dataset, side(dataset, ())
    train = [row for row, held_out in zip(dataset.rows, is_held_out, strict=True) if not held_out]
    held = [row for row, held_out in zip(dataset.rows, is_held_out, strict=True) if held_out]
    return side(dataset, train), side(dataset, held)


def side(dataset: Dataset, rows: Sequence[Row]) -> Dataset:
    """Some of a data set's rows, with a fingerprint of their own."""
    return Dataset(dataset.name, tuple(rows), fingerprint(rows), dataset.unit)


def write_rows(dataset: Dataset, path: Path) -> None:
    """Freeze rows: a JSONL file that a job can name as `held_out:`, and that gives the same rows when it is read."""
    path.write_text("".join(as_line(row) + "\n" for row in dataset.rows), encoding="utf-8", newline="\n")


def _draw(row: Row, seed: int) -> float:
    """From 0 to 1, as if by chance."""
    digest = hashlib.sha256(str(seed).encode() + b":" + gist(row)).digest()
    return int.from_bytes(digest[:8]) / 2**64
