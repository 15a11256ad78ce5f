"""Blobs on the local disk.

    <root>/sha256/<hex>/          the blob's files, and manifest.json
    <root>/quarantine/<uuid>/     what lay under a digest and was not, or no longer, its own: kept until a person has
                                  looked at it and removes it
    <root>/staging/<uuid>/        what is on its way, and what was deleted until its room is free: see `Staging`

A folder under sha256/ is synced, its manifest written last, before a rename lets it appear. A disk may break that: what
is no longer whole gives way when its bytes come again.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

from adapters.digests import MANIFEST_FILE, digest_folder, hex_of
from adapters.durable import sync_to_disk
from adapters.errors import NotFoundError, StorageError
from adapters.manifests import write_manifest
from adapters.storage.disk import alone_in_place, appear, disk_errors, held_in_place, locked, seal
from adapters.storage.staging import Staging
from adapters.values import BlobState, DiskUse, Manifest

_TRIES: Final = 5
"""Each one after the first needs somebody else who took away, at that moment, what was found in the place."""


class LocalBlobs:
    """`Blobs` in a folder. What holds a blob is a shared lock on its folder, which goes with the process."""

    def __init__(self, root: Path) -> None:
        """Open the store in `root`, making it if it is not there. Raises StorageError."""
        self._blobs = root / "sha256"
        self._quarantine = root / "quarantine"
        self._staging = Staging(root / "staging")
        with disk_errors():
            for folder in (self._blobs, self._quarantine):
                folder.mkdir(parents=True, exist_ok=True)
            # Also if they were there: whoever made them may have died before this.
            for folder in (root, root.parent):
                sync_to_disk(folder)

    def put(self, staged: Path, manifest: Manifest) -> None:
        """See `Blobs`. `staged` must lie on the same file system; it has moved when this returns."""
        target = self._folder(manifest.digest)
        with disk_errors():
            for path in sorted(staged.iterdir()):
                seal(path)
            write_manifest(staged / MANIFEST_FILE, manifest)
            seal(staged / MANIFEST_FILE)
            sync_to_disk(staged)
            for _ in range(_TRIES):
                if appear(staged, target) or self.check(manifest.digest) is BlobState.WHOLE:
                    break
            else:
                raise StorageError("The stored files were changed by somebody else meanwhile: publish them again.")
            # Also if another got there first: its own sync may be still to come, and our row may not precede it.
            sync_to_disk(self._blobs)

    @contextmanager
    def hold(self, digest: str) -> Iterator[Path]:
        """See `Blobs`."""
        folder = self._folder(digest)
        with ExitStack() as held:
            with disk_errors():
                if not (held.enter_context(held_in_place(folder)) and (folder / MANIFEST_FILE).is_file()):
                    raise NotFoundError("There is nothing with this digest.", code="digest_not_found")
                if not is_whole(folder, digest):
                    raise StorageError(f"The stored files of {digest} have changed.", code="blob_damaged")
            yield folder

    def check(self, digest: str) -> BlobState:
        """See `Blobs`. It is held meanwhile: nobody deletes what is being read."""
        target = self._folder(digest)
        with disk_errors():
            with held_in_place(target) as is_there:
                if not is_there:
                    return BlobState.MISSING
                if is_whole(target, digest):
                    return BlobState.WHOLE
            return self._set_aside(target, digest)

    def is_stored(self, digest: str) -> bool:
        """See `Blobs`."""
        with disk_errors():
            return (self._folder(digest) / MANIFEST_FILE).is_file()

    def delete(self, digest: str) -> Callable[[], None] | None:
        """See `Blobs`."""
        target = self._folder(digest)
        with disk_errors(), alone_in_place(target) as is_ours:
            if is_ours:
                free = self._staging.take_away(target)
                sync_to_disk(self._blobs)
                return free
            return None if target.exists() else _nothing

    def cache_use(self) -> DiskUse | None:
        """See `Blobs`: there is no cache."""
        return None

    def _folder(self, digest: str) -> Path:
        return (self._blobs / hex_of(digest)).absolute()

    def _set_aside(self, target: Path, digest: str) -> BlobState:
        """Move what is damaged into quarantine, unless by now it isn't."""
        # One at a time: whoever comes second may find a whole one, mended in between. And held: no whole one takes the
        # place of what was read before it is moved.
        with locked(self._blobs), held_in_place(target) as is_there:
            if not is_there:
                return BlobState.MISSING
            if is_whole(target, digest):
                return BlobState.WHOLE
            target.rename(self._quarantine / uuid4().hex)
            sync_to_disk(self._blobs)
            return BlobState.DAMAGED


def _nothing() -> None:
    """What is left to do for what is not there."""


def is_whole(folder: Path, digest: str) -> bool:
    """Whether all of a blob is there and unchanged: read to the last byte. Raises OSError if the disk can't tell."""
    try:
        stored = json.loads((folder / MANIFEST_FILE).read_bytes())
        return isinstance(stored, dict) and stored.get("digest") == digest == digest_folder(folder)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return False
