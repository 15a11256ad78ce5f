"""What the registry asks of a place for bytes."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from adapters.values import BlobState, DiskUse, Manifest


class Blobs(Protocol):
    """Folders of files by their digest, written once. Safe to use from several threads and processes at once.

    Invariant: what is there is whole. Its manifest.json is written last, and its files never change afterwards.
    """

    def put(self, staged: Path, manifest: Manifest) -> None:
        """Keep the files in `staged` under their digest; nothing happens if they are there already, and whole.

        When this returns, a power failure does not undo it. What is there and damaged gives way.

        Raises:
            StorageError: the disk or the store failed or is full.
        """

    def hold(self, digest: str) -> AbstractContextManager[Path]:
        """The absolute path of a blob's read-only files, read again to the last byte; nothing deletes them meanwhile.

        Raises:
            NotFoundError: `digest_not_found`.
            StorageError: `blob_damaged`: they are not those of the digest; or the disk or the store failed.
        """

    def check(self, digest: str) -> BlobState:
        """Read a blob again, and set it aside if it is damaged: nothing is served from it until it is put again.

        If there is a whole copy in a cache, it is mended from that.

        Raises:
            StorageError: the disk or the store failed.
        """

    def is_stored(self, digest: str) -> bool:
        """Whether a blob is there, by the word of the place itself, whatever is cached. Cheap: its bytes are not read.

        Raises:
            StorageError: the disk or the store failed.
        """

    def delete(self, digest: str) -> Callable[[], None] | None:
        """Take a blob out of sight, for good. None if somebody holds it: then it stays. Quick, whatever its size.

        What is returned frees its room, and raises nothing: call it when nothing is waited for any more. If it never
        is, the room is freed later all the same. One that is not there is deleted already.

        Raises:
            StorageError: the disk or the store failed; it may be out of sight all the same.
        """

    def cache_use(self) -> DiskUse | None:
        """How full the cache on this disk is. None: there is none, the blobs themselves lie here.

        Raises:
            StorageError: the disk failed.
        """
