"""Files that come in parts, on the disk. Knows no uploads: how much of a file was acknowledged is told."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from adapters.durable import sync_to_disk
from adapters.errors import InvalidError, StorageError
from adapters.names import quoted
from adapters.refusals import Refusal, refusal
from adapters.storage import disk_errors

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def append_part(path: Path, offset: int, chunks: Iterable[bytes], *, room: int) -> int:
    """Add to the file, of which `offset` bytes were acknowledged; how many it has then, all of them on the disk.

    Raises:
        TooLargeError: `file_too_large`: they are more than `room`.
        StorageError: the disk failed or is full; `upload_damaged`: it has lost what was acknowledged.
        Exception: whatever `chunks` raises. Whenever anything is raised, the file ends where it did.
    """
    with disk_errors():
        if (path.stat().st_size if path.exists() else 0) < offset:
            raise _damaged(path.name)
        try:
            with path.open("ab") as file:
                file.truncate(offset)
                size_bytes = offset + _write_chunks(file, chunks, room)
            sync_to_disk(path)
            if not offset:
                sync_to_disk(path.parent)
        except BaseException:
            with suppress(OSError):  # if this fails, too, the next part does it
                os.truncate(path, offset)
            raise
    return size_bytes


def _write_chunks(file: BinaryIO, chunks: Iterable[bytes], room: int) -> int:
    written_bytes = 0
    for chunk in chunks:
        written_bytes += len(chunk)
        if written_bytes > room:
            raise refusal(
                Refusal.FILE_TOO_LARGE,
                f"With this part there are more bytes than the upload may have: {room} more may come.",
            )
        file.write(chunk)
    return written_bytes


def cut_back(folder: Path, files: Mapping[str, int]) -> None:
    """Leave of each file what was acknowledged, and of others nothing: what else is there, nobody was told of.

    Raises:
        StorageError: `upload_damaged`, or the disk failed.
    """
    with disk_errors():
        for path in folder.iterdir():
            if path.name not in files:
                path.unlink()
        for name, size_bytes in files.items():
            path = folder / name
            if not path.exists() or path.stat().st_size < size_bytes:
                raise _damaged(name)
            os.truncate(path, size_bytes)


def require_digests(folder: Path, digests: Mapping[str, str]) -> None:
    """Return if the files in `folder` have these digests, `sha256:<hex>`.

    Raises:
        InvalidError: `invalid_digest`; `digest_mismatch`, naming the file.
        StorageError: the disk failed.
    """
    with disk_errors():
        there = {path.name for path in folder.iterdir()}  # a stranger's name is only compared, never made a path
        for name, digest in digests.items():
            if not _DIGEST.fullmatch(digest):
                raise InvalidError(
                    f"The digest of {quoted(name)} must be 'sha256:' and 64 hexadecimal digits.", code="invalid_digest"
                )
            if name not in there:
                raise InvalidError(f"Nothing came of {quoted(name)}.", code="digest_mismatch")
            if (came := _digest_of(folder / name)) != digest:
                raise InvalidError(f"What came of {quoted(name)} has the digest {came}.", code="digest_mismatch")


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _damaged(name: str) -> StorageError:
    return StorageError(
        f"The disk has lost what came of {quoted(name)}: cancel the upload and begin another.", code="upload_damaged"
    )
