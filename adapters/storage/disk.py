"""The local disk, as every store uses it: its errors as ours, one at a time in a folder, folders that appear whole."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from adapters.durable import sync_to_disk
from adapters.errors import StorageError

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def disk_errors() -> Iterator[None]:
    """The operating system's errors as ours: their own text holds paths.

    Raises:
        StorageError: `insufficient_storage` if there is no room, else `storage_unavailable`.
    """
    try:
        yield
    except OSError as error:
        code = "insufficient_storage" if error.errno in _FULL else None
        raise StorageError(f"The registry's disk can't be used: {error.strerror or 'it failed'}.", code=code) from error


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Alone among all threads and processes that say this of `folder`, or (shared) among those that don't share.

    Raises:
        OSError: there is no such folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        let_go(descriptor)


@contextmanager
def held_in_place(folder: Path) -> Iterator[bool]:
    """Whether a folder is there and shared with who else holds it: then nobody is `alone_in_place` meanwhile."""
    with _locked_in_place(folder, fcntl.LOCK_SH) as is_held:
        yield is_held


@contextmanager
def alone_in_place(folder: Path) -> Iterator[bool]:
    """Whether a folder is there and held by nobody: then it is ours. Does not wait."""
    with _locked_in_place(folder, fcntl.LOCK_EX | fcntl.LOCK_NB) as is_ours:
        yield is_ours


@contextmanager
def _locked_in_place(folder: Path, operation: int) -> Iterator[bool]:
    with ExitStack() as opened:
        try:
            while True:
                descriptor = os.open(folder, os.O_RDONLY)
                opened.callback(let_go, descriptor)
                fcntl.flock(descriptor, operation)
                if os.path.samestat(os.fstat(descriptor), folder.stat()):
                    break
                opened.close()  # it went, and came again, between the two: this lock is on what is gone
            is_locked = True
        except (FileNotFoundError, BlockingIOError):
            is_locked = False
        yield is_locked


def let_go(descriptor: int) -> None:
    """Unlock and close. Closing alone does not unlock what a process that was forked meanwhile has open, too."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def appear(staged: Path, target: Path) -> bool:
    """Whether `staged` has become `target`, rather than found something there already. Its parent is not synced."""
    try:
        staged.rename(target)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:  # the last: it is a file
            raise
        return False
    return True


def seal(path: Path) -> None:
    """A file read-only and on the disk. Its folder stays writable for its owner, so that it can be removed."""
    path.chmod(0o444)
    sync_to_disk(path)
