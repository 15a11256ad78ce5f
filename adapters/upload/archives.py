"""Archives, told apart by their first bytes. Invariant: nothing is ever extracted to a name that an archive chose."""

import gzip
import zlib
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, Final

from adapters.limits import Limits
from adapters.refusals import Refusal, refusal
from adapters.upload.members import Budget, Member
from adapters.upload.tar import MAGIC as TAR_MAGIC
from adapters.upload.tar import MAGIC_OFFSET, tar_members
from adapters.upload.zip import MAGICS as ZIP_MAGICS
from adapters.upload.zip import zip_members

_GZIP_MAGIC: Final = b"\x1f\x8b"


def archive_members(stream: BinaryIO, *, max_bytes: int = Limits.max_upload_bytes) -> Iterator[Member]:
    """The members of a .tar, a .tar.gz or a .zip, each readable until the next is asked for.

    `stream` must be seekable. Raises RefusedError `archive_invalid`, `illegal_member_type` or `illegal_member_path`;
    TooLargeError `archive_too_large` as soon as more than `max_bytes` were unpacked.
    """
    budget = Budget(max_bytes)
    head = stream.read(MAGIC_OFFSET + len(TAR_MAGIC))
    stream.seek(0)
    if head.startswith(_GZIP_MAGIC):
        return _gzip_members(stream, budget)
    if head.startswith(ZIP_MAGICS):
        return zip_members(stream, budget)
    if head[MAGIC_OFFSET:] == TAR_MAGIC:
        return tar_members(stream.read, budget)
    raise refusal(Refusal.ARCHIVE_INVALID, "The upload is not a .tar, .tar.gz or .zip archive.")


def _gzip_members(stream: BinaryIO, budget: Budget) -> Iterator[Member]:
    with gzip.GzipFile(fileobj=stream, mode="rb") as unpacked:
        yield from tar_members(partial(_unpack, unpacked), budget)


def _unpack(unpacked: gzip.GzipFile, at_most: int) -> bytes:
    try:
        return unpacked.read(at_most)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise refusal(Refusal.ARCHIVE_INVALID, "The gzip archive is cut short or damaged.") from error
