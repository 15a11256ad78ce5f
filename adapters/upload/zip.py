"""Zip archives through `zipfile`, after its weak points are out of the way: the directory's size, links, encryption."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, BinaryIO, Final

from adapters.limits import MAX_HEADERS
from adapters.names import quoted
from adapters.refusals import Refusal, refusal
from adapters.upload.members import Budget, Member, stream_of

MAGICS: Final = (b"PK\x03\x04", b"PK\x05\x06")

_END: Final = struct.Struct("<4s4H2LH")
"""End of central directory: signature, disk, directory's disk, entries here, entries, size, offset, comment length."""
_MAX_DIRECTORY_BYTES: Final = 1 << 16
_IS_ENCRYPTED: Final = 0x1
_METHODS: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


def zip_members(stream: BinaryIO, budget: Budget) -> Iterator[Member]:
    """The plain files in a zip archive."""
    directory_offset = _require_small_directory(stream)
    with _zip_errors(), zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_HEADERS:
            raise _too_many()
        for entry in entries:
            if entry.orig_filename == "./":
                continue
            _require_plain(entry, directory_offset)
            with archive.open(entry) as content:
                yield entry.orig_filename, stream_of(partial(_read, content, budget))


def _read(content: IO[bytes], budget: Budget, at_most: int) -> bytes:
    with _zip_errors():
        chunk = content.read(at_most)
    budget.spend(len(chunk))
    return chunk


def _require_small_directory(stream: BinaryIO) -> int:
    """`zipfile` reads the whole directory into memory and makes an object of each entry: a million is 500 MB.

    Returns where the directory begins: every member lies before it.
    """
    size_bytes = stream.seek(0, 2)
    stream.seek(max(0, size_bytes - _END.size))
    end = stream.read(_END.size)
    if len(end) < _END.size or not end.startswith(b"PK\x05\x06") or not end.endswith(b"\0\0"):
        raise refusal(Refusal.ARCHIVE_INVALID, "The zip archive is cut short, or something follows it.")
    _, _, _, _, _, directory_bytes, offset, _ = _END.unpack(end)
    if directory_bytes > _MAX_DIRECTORY_BYTES:
        raise _too_many()
    if offset + directory_bytes + _END.size != size_bytes:
        # Also where a zip64 directory hides: its own end record lies between.
        raise refusal(Refusal.ARCHIVE_INVALID, "The zip archive's directory is not where it says.")
    stream.seek(0)
    return int(offset)


def _require_plain(entry: zipfile.ZipInfo, directory_offset: int) -> None:
    if not 0 <= entry.header_offset < directory_offset:
        raise refusal(Refusal.ARCHIVE_INVALID, "The zip archive's directory points outside it.")
    name = quoted(entry.orig_filename)
    mode = stat.S_IFMT(entry.external_attr >> 16)
    # Not `is_dir()`: of a name that is empty, it raises IndexError.
    if entry.orig_filename.endswith("/") or mode not in {0, stat.S_IFREG}:
        raise refusal(
            Refusal.ILLEGAL_MEMBER_TYPE,
            f"{name} is not a plain file: put the two files at the archive's top, with no folders.",
        )
    if entry.flag_bits & _IS_ENCRYPTED or entry.compress_type not in _METHODS:
        raise refusal(Refusal.ARCHIVE_INVALID, f"{name} is encrypted, or packed in a way other than 'deflate'.")


def _too_many() -> Exception:
    return refusal(Refusal.TOO_MANY_MEMBERS, "The zip archive has too many members; an adapter is two files.")


@contextmanager
def _zip_errors() -> Iterator[None]:
    """`zipfile` on a hostile archive raises more than its own errors (seen in its source)."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError) as error:
        raise refusal(Refusal.ARCHIVE_INVALID, "The zip archive is damaged.") from error
