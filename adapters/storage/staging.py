"""Folders for what is on its way, in or out. Invariant: none stays, unless its process dies, and then for a day."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final
from uuid import uuid4

from adapters.storage.disk import disk_errors

_ABANDONED_SECONDS: Final = 24 * 3600
"""Nothing takes a day: a staged folder this old belongs to a process that was killed."""


class Staging:
    """Safe to use from several threads and processes at once."""

    def __init__(self, root: Path) -> None:
        """Stage in `root`, making it if it is not there, and sweep out what was abandoned. Raises StorageError."""
        self._root = root
        with disk_errors():
            root.mkdir(parents=True, exist_ok=True)
            self._sweep()

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty folder on the file system of `root`. It is gone afterwards, whatever happened.

        Raises:
            StorageError: the disk failed or is full. The block's own errors pass: what writes there says `disk_errors`.
        """
        folder = self._root / uuid4().hex
        with disk_errors():
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def take_away(self, path: Path) -> Callable[[], None]:
        """Move a file or folder out of sight at once. What is returned frees its room; if it is never called, a sweep.

        Raises:
            OSError: it can't be moved, and is where it was.
        """
        trash = self._root / uuid4().hex
        path.rename(trash)
        return partial(_remove, trash)

    def _sweep(self) -> None:
        for folder in self._root.iterdir():
            try:
                is_abandoned = time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS
            except FileNotFoundError:  # its block has just ended
                continue
            if is_abandoned:
                _remove(folder)


def _remove(path: Path) -> None:
    """What can't be removed now, a sweep comes back to."""
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
