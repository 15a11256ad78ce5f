"""The adapters' bytes on the local disk, by digest.

    <root>/sha256/<hex>/          adapter_config.json  adapter_model.safetensors  manifest.json
    <root>/staging/<uuid>/        an upload on its way; gone when it ends
    <root>/quarantine/<uuid>/     what lay under a digest and was not, or no longer, its own: for a person to look at

Invariant: a folder under sha256/ is whole. It is synced, its manifest written last, before a rename lets it appear; and
its files never change afterwards. A disk may break that: what is no longer whole gives way when its bytes come again.
Knows no tenants: equal bytes are one blob, whoever published them.
"""

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

from adapters.digests import ADAPTER_FILES, digest_folder, hex_of
from adapters.durable import sync_to_disk
from adapters.errors import NotFoundError, StorageError
from adapters.manifests import dump_manifest
from adapters.values import BlobState, Manifest

MANIFEST_FILE: Final = "manifest.json"

_ABANDONED_SECONDS: Final = 24 * 3600
"""No upload takes a day: a staged folder this old belongs to a process that was killed."""


class Store:
    """Safe to use from several threads and processes at once."""

    def __init__(self, root: Path) -> None:
        """Open the store in `root`, making it if it is not there. Raises StorageError."""
        self._blobs = root / "sha256"
        self._staging = root / "staging"
        self._quarantine = root / "quarantine"
        with disk_errors():
            for folder in (self._blobs, self._staging, self._quarantine):
                folder.mkdir(parents=True, exist_ok=True)
            self._sweep()

    @contextmanager
    def stage(self) -> Iterator[Path]:
        """An empty folder on the store's own file system, for `commit`. It is gone afterwards, whatever happened.

        Raises:
            StorageError: the disk failed or is full. The block's own errors pass: what writes there says `disk_errors`.
        """
        folder = self._staging / uuid4().hex
        with disk_errors():
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, staged: Path, manifest: Manifest) -> None:
        """Let the adapter in `staged` appear under its digest; nothing happens if it is there already, and whole.

        When this returns, a power failure does not undo it.

        Raises:
            StorageError: the disk failed or is full.
        """
        target = self._blobs / hex_of(manifest.digest)
        with disk_errors():
            for name in ADAPTER_FILES:
                _seal(staged / name)
            (staged / MANIFEST_FILE).write_text(json.dumps(dump_manifest(manifest), indent=2, sort_keys=True) + "\n")
            _seal(staged / MANIFEST_FILE)
            sync_to_disk(staged)
            if not _appear(staged, target) and not _is_whole(target, manifest.digest):
                self._set_aside(target, manifest.digest)
                _appear(staged, target)  # if not, somebody else mended it in between
            # Also if another got there first: its own sync may be still to come, and our row may not precede it.
            sync_to_disk(self._blobs)

    def folder(self, digest: str) -> Path:
        """The absolute path of a blob's read-only files. Raises NotFoundError `digest_not_found` unless it is whole."""
        folder = (self._blobs / hex_of(digest)).absolute()
        if not all((folder / name).is_file() for name in (*ADAPTER_FILES, MANIFEST_FILE)):
            raise NotFoundError("There is nothing with this digest.", code="digest_not_found")
        return folder

    def verify(self, digest: str) -> Path:
        """Its `folder`, read again. Raises StorageError `blob_damaged` if its bytes are no longer the digest's."""
        folder = self.folder(digest)
        with disk_errors():
            if digest_folder(folder) != digest:
                raise StorageError(f"The stored files of {digest} have changed.", code="blob_damaged")
        return folder

    def check(self, digest: str) -> BlobState:
        """Read a blob again, and set it aside if it is damaged: nothing is served from it until it comes again.

        Raises:
            StorageError: the disk failed.
        """
        target = self._blobs / hex_of(digest)
        with disk_errors():
            if not target.exists():
                return BlobState.MISSING
            return BlobState.DAMAGED if self._set_aside(target, digest) else BlobState.WHOLE

    def _set_aside(self, target: Path, digest: str) -> bool:
        """Whether the folder was damaged, and lies in quarantine now."""
        # One at a time: whoever comes second may find a whole one, mended in between.
        with _alone(self._blobs):
            if not target.exists() or _is_whole(target, digest):
                return False
            target.rename(self._quarantine / uuid4().hex)
            sync_to_disk(self._blobs)
            return True

    def _sweep(self) -> None:
        for folder in self._staging.iterdir():
            try:
                is_abandoned = time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS
            except FileNotFoundError:  # its upload has just ended
                continue
            if is_abandoned:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def disk_errors() -> Iterator[None]:
    """The operating system's errors as ours: their own text holds paths."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"The registry's disk can't be used: {error.strerror or 'it failed'}.") from error


def _appear(staged: Path, target: Path) -> bool:
    """Whether `staged` has become `target`, rather than found a folder of that name there."""
    try:
        staged.rename(target)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
            raise
        return False
    return True


def _is_whole(folder: Path, digest: str) -> bool:
    """Whether all of a blob is there and unchanged: read to the last byte, as the gate has just done with its equal."""
    try:
        stored = json.loads((folder / MANIFEST_FILE).read_bytes())
        return isinstance(stored, dict) and stored.get("digest") == digest == digest_folder(folder)
    except (OSError, ValueError):
        return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Among all threads and processes that say this of `folder`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _seal(path: Path) -> None:
    """Read-only and on the disk. The folder stays writable for its owner, or nobody could `rm -r` the registry."""
    path.chmod(0o444)
    sync_to_disk(path)
