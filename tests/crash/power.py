"""What a power failure takes away: all that no fsync has asked the disk for. A model of an unkind file system.

A file's bytes are safe after its own fsync, a name after its folder's. What was committed in a database is safe: that
is the database's own promise, and makes the test a hard one.
"""

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Name:
    """Something that has got a name: it is new, or (`old`) was renamed."""

    path: str
    old: str | None = None
    is_safe: bool = False

    def moves(self, path: str) -> str:
        """Where `path`, inside what was renamed, is afterwards."""
        is_inside = self.old is not None and path.startswith(f"{self.old}/")
        return self.path + path.removeprefix(self.old or "") if is_inside else path


class Unsynced:
    """What has happened to the files in `root`, and what of it was synced."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: set[int] = set()
        """The inodes of files with bytes that may be lost."""
        self._names: list[Name] = []
        """The oldest first."""

    def wrote(self, descriptor: int) -> None:
        """A file has got bytes."""
        self._files.add(os.fstat(descriptor).st_ino)

    def made(self, path: str | Path) -> None:
        """A file or folder has appeared."""
        self._names.append(Name(os.fspath(path)))

    def renamed(self, old: str | Path, new: str | Path) -> None:
        """A file or folder has another path."""
        self._names.append(Name(os.fspath(new), os.fspath(old)))

    def synced(self, descriptor: int) -> None:
        """A file's bytes, or a folder's names, are on the disk."""
        found = os.fstat(descriptor)
        if not stat.S_ISDIR(found.st_mode):
            self._files.discard(found.st_ino)
            return
        folder = os.readlink(f"/proc/self/fd/{descriptor}")
        for place, name in enumerate(self._names):
            # A rename is one step of the file system's: it is safe when either of its folders is.
            paths = [self._now(place, name.path), name.old or ""]
            name.is_safe |= folder in {os.path.dirname(path) for path in paths}

    def lose(self) -> None:
        """Take away all that is not safe, the newest name first."""
        for place, name in reversed(list(enumerate(self._names))):
            is_named_anew = any(later.is_safe and later.old == name.path for later in self._names[place + 1 :])
            path = self._now(place, name.path, only_safe=True)
            if not name.is_safe and not is_named_anew and os.path.exists(path):
                _undo(path, name.old)
        for file in self._root.rglob("*"):
            if file.is_file() and file.stat().st_ino in self._files:
                os.chmod(file, 0o600)
                os.truncate(file, 0 if file.stat().st_size % 2 else file.stat().st_size // 2)

    def _now(self, place: int, path: str, *, only_safe: bool = False) -> str:
        """The path of a name after the renames that came after it."""
        for later in self._names[place + 1 :]:
            if later.is_safe or not only_safe:
                path = later.moves(path)
        return path


def _undo(path: str, old: str | None) -> None:
    if old is not None and os.path.isdir(os.path.dirname(old)):
        os.rename(path, old)
    elif os.path.isdir(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
