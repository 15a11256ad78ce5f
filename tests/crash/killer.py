"""The points at which a process changes the disk or commits, counted; from the n-th on, something happens to it.

All of it is patched into a process of the tests: the program knows nothing of it. A point comes before what it is named
after, save `torn write` (half of the bytes are written) and `committed` (the driver has come back, nobody was told).
"""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, partialmethod
from pathlib import Path
from typing import Any, Final, NoReturn
from unittest.mock import patch

from sqlalchemy import Connection

from tests.crash.power import Unsynced

GROWING: Final = frozenset({"open", "write", "torn write", "mkdir", "fsync"})
"""Where a full disk says so; a database has its own words. To rename and to remove takes no room to speak of."""
CHANGING: Final = GROWING | {"rename", "unlink", "rmdir", "chmod"}

Deed = Callable[["Points", str], None]
"""What happens at a point and at every later one, given its name."""


class Points:
    """What the points in `root` were so far, by name."""

    def __init__(self, root: Path, deed: Deed | None = None, *, at: int = 1) -> None:
        self.root = os.fspath(root)
        self.names: list[str] = []
        self.unsynced = Unsynced(root)
        self.deed = deed
        self._at = at

    def reach(self, name: str) -> None:
        """Come to the next point."""
        self.names.append(name)
        if self.deed is not None and len(self.names) >= self._at:
            self.deed(self, name)

    def covers(self, path: object) -> bool:
        """Whether a path is ours: one in `root`, or relative to a folder that is open (as rmtree does it)."""
        return isinstance(path, str | os.PathLike) and (
            not os.path.isabs(path) or os.fspath(path).startswith(self.root)
        )


def die(_points: Points, _name: str) -> NoReturn:
    """As kill -9 does it."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def lose_power(points: Points, name: str) -> NoReturn:
    """As a power failure does it: what no fsync has asked for was never written."""
    points.deed = None
    points.unsynced.lose()
    die(points, name)


def fail(number: int, names: frozenset[str]) -> Deed:
    """Every later change of these names fails with this error number, as on a full or a read-only disk."""
    return partial(_fail, number, names)


def fail_once(number: int) -> Deed:
    """One change fails with this error number, whatever it is."""
    return partial(_fail_once, number)


def _fail(number: int, names: frozenset[str], _points: Points, name: str) -> None:
    if name in names:
        raise OSError(number, os.strerror(number))


def _fail_once(number: int, points: Points, name: str) -> None:
    if name in CHANGING:
        points.deed = None
        raise OSError(number, os.strerror(number))


@contextmanager
def watched(points: Points) -> Iterator[Points]:
    """Count, in this process and as long as the block lasts. Not for several threads at once."""
    with ExitStack() as patched:
        for name in ("rename", "replace", "mkdir", "unlink", "remove", "rmdir", "chmod"):
            patched.enter_context(patch.object(os, name, partial(_changed, points, name, getattr(os, name))))
        patched.enter_context(patch.object(os, "fsync", partial(_synced, points, os.fsync)))
        opener = partial(_opened, points, io.open)
        patched.enter_context(patch.object(io, "open", opener))
        patched.enter_context(patch.object(builtins, "open", opener))
        commit = partialmethod(_committed, points, Connection._commit_impl)
        patched.enter_context(patch.object(Connection, "_commit_impl", commit))
        yield points


def _changed(points: Points, name: str, change: Callable[..., None], path: Any, *args: Any, **options: Any) -> None:
    if not points.covers(path):
        change(path, *args, **options)
        return
    points.reach({"replace": "rename", "remove": "unlink"}.get(name, name))
    change(path, *args, **options)
    if name in {"rename", "replace"}:
        points.unsynced.renamed(path, args[0])
    elif name == "mkdir":
        points.unsynced.made(path)


def _synced(points: Points, fsync: Callable[[int], None], descriptor: int) -> None:
    points.reach("fsync")
    fsync(descriptor)
    points.unsynced.synced(descriptor)


def _committed(connection: Connection, points: Points, commit: Callable[[Connection], None]) -> None:
    is_write = connection.get_execution_options().get("lorikeet_is_write", False)
    if is_write:
        points.reach("commit")
    commit(connection)
    if is_write:
        points.reach("committed")


class _Raw(io.FileIO):
    """A file whose every write comes to two points."""

    points: Points

    def write(self, content: Any, /) -> int:
        view = memoryview(content).cast("B")
        half = len(view) // 2
        self.points.reach("write")
        written = super().write(view[:half]) if half else 0
        self.points.unsynced.wrote(self.fileno())
        self.points.reach("torn write")
        return written + super().write(view[half:]) if written == half else written


def _opened(points: Points, plain: Callable[..., Any], path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
    writes = set(mode) & set("wxa+")
    if not writes or not points.covers(path) or not os.path.isabs(path):
        return plain(path, mode, *args, **options)
    points.reach("open")
    is_new = not os.path.exists(path)
    raw = _Raw(path, mode.replace("b", "").replace("t", ""))
    raw.points = points
    points.unsynced.wrote(raw.fileno())
    if is_new:
        points.unsynced.made(path)
    buffered = io.BufferedWriter(raw)
    encoding = options.get("encoding") or (args[1] if len(args) > 1 else None)  # pathlib gives it by position
    return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding=encoding, newline="")


FULL: Final = fail(errno.ENOSPC, GROWING)
READ_ONLY: Final = fail(errno.EROFS, CHANGING)
