"""Archives, told apart by their first bytes. Invariant: nothing is ever extracted to a name that an archive chose."""

import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

from adapters.limits import Limits
from adapters.refusals import Refusal, refusal
from adapters.upload.members import Budget, Member
from adapters.upload.tar import MAGIC as TAR_MAGIC
from adapters.upload.tar import MAGIC_OFFSET, tar_members
from adapters.upload.zip import MAGICS as ZIP_MAGICS
from adapters.upload.zip import zip_members

_GZIP_MAGIC: Final = b"\x1f\x8b"
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
"""zlib's way to ask for gzip's header and sum."""
_PACKED_BYTES: Final = 1 << 16


def archive_members(stream: BinaryIO, *, max_bytes: int = Limits.max_upload_bytes) -> Iterator[Member]:
    """The members of a .tar, a .tar.gz or a .zip, each readable until the next is asked for.

    `stream` must be seekable. Raises RefusedError `archive_invalid`, `illegal_member_type` or `illegal_member_path`;
    TooLargeError `archive_too_large` as soon as more than `max_bytes` were unpacked.
    """
    budget = Budget(max_bytes)
    head = stream.read(MAGIC_OFFSET + len(TAR_MAGIC))
    stream.seek(0)
    if head.startswith(_GZIP_MAGIC):
        return tar_members(_Gzip(stream).read, budget)
    if head.startswith(ZIP_MAGICS):
        return zip_members(stream, budget)
    if head[MAGIC_OFFSET:] == TAR_MAGIC:
        return tar_members(stream.read, budget)
    raise refusal(Refusal.ARCHIVE_INVALID, "The upload is not a .tar, .tar.gz or .zip archive.")


class _Gzip:
    """A stream unpacked, in zlib's own C.

    Python's `gzip` loops over each byte of a header's file name, and over members in which there is nothing: a body
    made of those holds a thread for a quarter of a second a megabyte.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._unpacker = zlib.decompressobj(_GZIP_WINDOW)

    def read(self, at_most: int) -> bytes:
        """Some bytes; none at the end, where the sum has been right and nothing may follow."""
        chunk = b""
        while not chunk and not self._unpacker.eof:
            packed = self._unpacker.unconsumed_tail or self._stream.read(_PACKED_BYTES)
            if not packed:
                raise refusal(Refusal.ARCHIVE_INVALID, "The gzip archive is cut short.")
            try:
                chunk = self._unpacker.decompress(packed, at_most)
            except zlib.error as error:
                raise refusal(Refusal.ARCHIVE_INVALID, "The gzip archive is damaged.") from error
        if not chunk and (self._unpacker.unused_data or self._stream.read(1)):
            raise refusal(Refusal.ARCHIVE_INVALID, "Something follows the gzip archive.")
        return chunk
