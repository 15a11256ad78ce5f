"""Blobs that lie elsewhere, kept on this disk while there is room: the least recently used goes first.

    <root>/sha256/<hex>/     an entry: the blob's files, and manifest.json; its mtime is its last use
    <root>/flights/<hex>     locked by who fetches that blob, and there no longer than it takes
    <root>/staging/<uuid>/   what is being fetched or thrown away

What holds an entry is a shared lock on its folder, which goes with the process. Nothing here is ever the only copy, so
nothing is synced: an entry is read again to the last byte whenever it is held, and fetched anew if it has changed.
Invariant: the entries are within the budget, or all that are left are held.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from adapters.digests import hex_of
from adapters.storage.disk import alone_in_place, disk_errors, held_in_place, let_go, locked
from adapters.storage.local import is_whole
from adapters.storage.staging import Staging
from adapters.values import DiskUse

DEFAULT_CACHE_BYTES: Final = 20 << 30

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Incoming:
    """A blob that can be fetched."""

    size_bytes: int
    fetch: Callable[[Path], None]
    """Writes its files, checked to be those of the digest, into an empty folder; else raises."""


class Cache:
    """Safe to use from several threads and processes at once."""

    def __init__(self, root: Path, *, budget_bytes: int) -> None:
        """Open the cache in `root`, making it if it is not there. Raises StorageError."""
        self.staging = Staging(root / "staging")
        self._trash = root / "staging"
        self._entries = root / "sha256"
        self._flights = root / "flights"
        self._budget_bytes = budget_bytes
        with disk_errors():
            for folder in (self._entries, self._flights):
                folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def hold(self, digest: str, find: Callable[[str], Incoming]) -> Iterator[Path]:
        """The absolute path of a blob's read-only files, fetched if they are not here, or no longer whole.

        However many ask for a blob at once, in however many processes, one fetches it. It stays while it is held, even
        if it is larger than the budget.

        Raises:
            NotFoundError, StorageError: what `find` and its `fetch` raise; `insufficient_storage`: this disk is full.
        """
        entry = (self._entries / hex_of(digest)).absolute()
        try:
            with ExitStack() as held:
                with disk_errors():
                    if not _hold_whole(held, entry, digest):
                        with _alone(self._flights / entry.name):
                            if not _hold_whole(held, entry, digest):  # nobody else fetched it meanwhile
                                self._fetch(held, entry, find(digest))
                    os.utime(entry)
                yield entry
        finally:
            # The next one to come makes the room that can't be made now.
            with suppress(OSError):
                self._make_room(0)

    @contextmanager
    def hold_cached(self, digest: str) -> Iterator[Path | None]:
        """The path of a blob's files if they are here, and whole: nothing is fetched. They stay during the block.

        Raises:
            StorageError: the disk failed.
        """
        entry = (self._entries / hex_of(digest)).absolute()
        with ExitStack() as held:
            with disk_errors():
                is_here = _hold_whole(held, entry, digest)
            yield entry if is_here else None

    def drop(self, digest: str) -> bool:
        """Forget a blob. False if somebody holds it: then it stays. One that is not here is forgotten already."""
        entry = self._entries / hex_of(digest)
        with disk_errors(), locked(self._entries):
            return self._evict(entry) or not entry.exists()

    def use(self) -> DiskUse:
        """How full it is. Raises StorageError."""
        with disk_errors(), locked(self._entries):
            return DiskUse(sum(map(_size_of, self._entries.iterdir())), self._budget_bytes)

    def _fetch(self, held: ExitStack, entry: Path, incoming: Incoming) -> None:
        with suppress(FileNotFoundError), locked(self._entries):
            self._throw_away(entry)  # even if it is held: it is no longer what its holder asked for
            log.warning("cached files have changed, and are fetched again: %s", entry.name)
        self._make_room(incoming.size_bytes)
        with self.staging.folder() as staged:
            held.enter_context(locked(staged, shared=True))  # and so it is held before anybody can see it
            incoming.fetch(staged)
            for path in staged.iterdir():
                path.chmod(0o444)
            staged.rename(entry)

    def _make_room(self, incoming_bytes: int) -> None:
        """Evict until the entries, and what is coming, are within the budget, or all that are left are held."""
        with locked(self._entries):
            by_last_use = sorted((entry.stat().st_mtime_ns, entry) for entry in self._entries.iterdir())
            sizes = {entry: _size_of(entry) for _, entry in by_last_use}
            over = sum(sizes.values()) + incoming_bytes - self._budget_bytes
            for entry, size_bytes in sizes.items():
                if over <= 0:
                    return
                if self._evict(entry):
                    over -= size_bytes

    def _evict(self, entry: Path) -> bool:
        """Whether the entry was there, nobody held it, and it is gone. Only for who has `_entries` locked."""
        with alone_in_place(entry) as is_ours:
            if is_ours:
                self._throw_away(entry)
            return is_ours

    def _throw_away(self, entry: Path) -> None:
        trash = self._trash / uuid4().hex
        entry.rename(trash)  # out of sight at once, before its files go one by one
        shutil.rmtree(trash, ignore_errors=True)


def _size_of(entry: Path) -> int:
    return sum(path.stat().st_size for path in entry.iterdir())


def _hold_whole(held: ExitStack, entry: Path, digest: str) -> bool:
    """Whether the entry is there and whole: then `held` holds it."""
    with ExitStack() as trying:
        if trying.enter_context(held_in_place(entry)) and is_whole(entry, digest):
            held.push(trying.pop_all())
            return True
    return False


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Alone among all threads and processes that say this of `path`: a file that is there only meanwhile."""
    with ExitStack() as opened:
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            opened.callback(let_go, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    break
            opened.close()  # whoever had it has removed it: this lock is on what is gone
        opened.callback(path.unlink, missing_ok=True)
        yield
