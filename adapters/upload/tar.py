"""A reader of tar archives, smaller than the attacks on `tarfile`: forward only, plain files, bounded memory.

What the short names of an adapter never need (long names, links, sparse files, sizes beyond 8 GiB) is refused. So are
headers without end: 100 MiB of them are half a megabyte of gzip, and belong to no member that anybody would count.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from adapters.limits import MAX_EXTENDED_HEADER_BYTES, MAX_HEADERS
from adapters.names import quoted
from adapters.refusals import Refusal, refusal
from adapters.upload.members import Budget, Member, stream_of

MAGIC: Final = b"ustar"
MAGIC_OFFSET: Final = 257

_BLOCK_BYTES: Final = 512
_PLAIN: Final = frozenset({b"0", b"\0", b"7"})
_FOLDER: Final = b"5"
_PAX: Final = frozenset({b"x", b"g"})
_LONG_NAMES: Final = frozenset({b"L", b"K"})
_OVERRIDES: Final = ("path", "linkpath", "size", "GNU.sparse")
"""The records of a pax header that would change which bytes are read, or what they are called."""


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    size_bytes: int
    type: bytes


class _Source:
    """Bytes from `read`, all of them counted."""

    def __init__(self, read: Callable[[int], bytes], budget: Budget) -> None:
        self._read = read
        self._budget = budget

    def some(self, at_most: int) -> bytes:
        chunk = self._read(at_most)
        self._budget.spend(len(chunk))
        return chunk

    def exactly(self, size: int) -> bytes:
        gathered = b""
        while len(gathered) < size:
            chunk = self.some(size - len(gathered))
            if not chunk:
                raise _invalid("ends in the middle")
            gathered += chunk
        return gathered

    def drain(self) -> None:
        """To the end: what follows the archive counts too, and gzip checks its sum there."""
        while self.some(_BLOCK_BYTES * 128):
            pass


class _Content:
    """The bytes of one member."""

    def __init__(self, source: _Source, size_bytes: int) -> None:
        self._source = source
        self._left = size_bytes
        self._padding = -size_bytes % _BLOCK_BYTES

    def read(self, at_most: int) -> bytes:
        chunk = self._source.some(min(at_most, self._left)) if self._left else b""
        if self._left and not chunk:
            raise _invalid("ends in the middle")
        self._left -= len(chunk)
        return chunk

    def skip(self) -> None:
        while self.read(1 << 16):
            pass
        self._source.exactly(self._padding)


def tar_members(read: Callable[[int], bytes], budget: Budget) -> Iterator[Member]:
    """The plain files in the tar archive whose bytes come from `read`."""
    source = _Source(read, budget)
    extended_bytes = 0
    for header in _headers(source):
        if header.type in _PAX:
            extended_bytes += header.size_bytes
            if extended_bytes > MAX_EXTENDED_HEADER_BYTES:
                raise _invalid("has extended headers of unreasonable size")
            _require_harmless(source, header)
            continue
        if header.type == _FOLDER and header.name in {".", "./"}:
            continue  # what `tar -C folder .` begins with
        if header.type in _LONG_NAMES:
            raise refusal(Refusal.ILLEGAL_MEMBER_PATH, "A member's name is longer than 100 characters.")
        if header.type not in _PLAIN:
            raise refusal(
                Refusal.ILLEGAL_MEMBER_TYPE,
                f"{quoted(header.name)} is not a plain file: put the two files at the archive's top, with no folders.",
            )
        content = _Content(source, header.size_bytes)
        yield header.name, stream_of(content.read)
        content.skip()
    source.drain()


def _headers(source: _Source) -> Iterator[_Header]:
    """Each header, where `source` stands when it is asked for: what belongs to the one before must have been read."""
    count = 0
    while (block := source.exactly(_BLOCK_BYTES)) != bytes(_BLOCK_BYTES):
        count += 1
        if count > MAX_HEADERS:
            raise refusal(
                Refusal.TOO_MANY_MEMBERS,
                f"The tar archive has more than {MAX_HEADERS} headers; an adapter is two files, in no folders.",
            )
        yield _parse(block)


def _parse(block: bytes) -> _Header:
    # The sum is taken with its own field read as spaces.
    if _number(block[148:156]) != sum(block[:148]) + sum(block[156:]) + 8 * ord(" "):
        raise _invalid("has a header whose checksum is wrong")
    name, prefix = (field.split(b"\0", 1)[0].decode("utf-8", "replace") for field in (block[:100], block[345:500]))
    # GNU tar keeps times where POSIX has the prefix; its magic ends in a space.
    is_posix = block[262:263] == b"\0"
    return _Header(f"{prefix}/{name}" if prefix and is_posix else name, _number(block[124:136]), block[156:157])


def _number(field: bytes) -> int:
    digits = field.strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        raise _invalid("has a header with a number that can't be read")
    return int(digits, 8)


def _require_harmless(source: _Source, header: _Header) -> None:
    records = source.exactly(header.size_bytes)
    source.exactly(-header.size_bytes % _BLOCK_BYTES)
    while records:
        digits, _, _ = records.partition(b" ")
        if not digits.isdigit() or len(digits) > 6 or not len(digits) < int(digits) <= len(records):  # noqa: PLR2004
            raise _invalid("has an extended header that can't be read")
        key = records[len(digits) + 1 : int(digits)].partition(b"=")[0].decode("utf-8", "replace")
        if key.startswith(_OVERRIDES):
            raise _invalid(f"has an extended header with {quoted(key)}, which no adapter needs")
        records = records[int(digits) :]


def _invalid(what: str) -> Exception:
    return refusal(Refusal.ARCHIVE_INVALID, f"The tar archive {what}.")
