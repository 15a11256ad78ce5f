"""What `RemoteBlobs` asks of an object store: keys with bytes, each there whole or not at all. Knows no digests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What the store says of one object."""

    size_bytes: int
    etag: str | None
    """Changes whenever its bytes do."""


class Objects(Protocol):
    """Keys are `folder/…/name`. Safe to use from several threads and processes at once.

    What fails is tried again for some minutes; `at_a_glance` for seconds, where somebody's transaction waits for it.

    Every method raises StorageError: `store_misconfigured` if trying again would not help (no or wrong credentials, no
    such bucket), else `storage_unavailable`. A file that can't be read or written here raises OSError.
    """

    def ready(self) -> None:
        """Ask for the least there is, once, within ten seconds. Raises StorageError."""

    def list(self, folder: str, *, at_a_glance: bool = False) -> Mapping[str, StoredObject]:
        """What lies in a folder, by its name there; not what lies in folders inside it."""

    def upload(self, key: str, file: Path) -> None:
        """Store a file, of any size, over what the key had."""

    def put(self, key: str, content: bytes) -> None:
        """Store a few bytes over what the key had."""

    def create(self, key: str, content: bytes) -> bool:
        """Whether a few bytes were stored, rather than something found under the key.

        After a StorageError they may be there all the same: the answer was lost.
        """

    def read(self, key: str) -> bytes:
        """A few bytes. Raises NotFoundError."""

    def download(self, key: str, file: Path, size_bytes: int) -> None:
        """The object's first `size_bytes` into a file, over what it had. Raises NotFoundError."""

    def delete(self, keys: Sequence[str], *, at_a_glance: bool = False) -> None:
        """Delete objects; one that is not there is deleted already."""
