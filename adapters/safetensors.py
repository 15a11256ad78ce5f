"""The safetensors format, as far as a registry needs it: the header read and written, no tensor ever interpreted.

Invariant: entries that `read_entries` returns cover the file's bytes exactly once, from the header to the end.
Format: 8 bytes little-endian header length, the header as JSON, then the tensors without gaps.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any, BinaryIO, Final

from adapters.names import quoted
from adapters.strict_json import parse_strictly

DTYPE_BITS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Every dtype that the format has. Which of them a reader takes is its own affair."""
CHUNK_BYTES: Final = 1 << 20

_LENGTH_BYTES: Final = 8
_ALIGNMENT: Final = 8
_LARGEST: Final = 1 << 48
"""More than any dimension or offset can be: keeps a hostile product of dimensions small enough to compute."""


class SafetensorsError(ValueError):
    """The file is not what its header says, or the header can't be. The text is a sentence without its full stop."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: its bytes are `[begin, end)`, counted from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        """How many bytes the tensor has."""
        return self.end - self.begin

    def read(self, file: BinaryIO) -> Iterator[bytes]:
        """The tensor's bytes out of `file`, in chunks of CHUNK_BYTES."""
        file.seek(self.begin)
        for begin in range(self.begin, self.end, CHUNK_BYTES):
            yield file.read(min(CHUNK_BYTES, self.end - begin))


def read_entries(path: Path, *, max_header_bytes: int) -> tuple[Entry, ...]:
    """The tensors of a file in the order of their bytes. Raises SafetensorsError."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size_bytes < _LENGTH_BYTES or length > size_bytes - _LENGTH_BYTES:
            raise SafetensorsError("it ends before its header does")
        if length > max_header_bytes:
            raise SafetensorsError(f"its header has {length} bytes; at most {max_header_bytes} are allowed")
        raw = file.read(length)
    return tuple(_contiguous(_parse(raw, start=_LENGTH_BYTES + length), _LENGTH_BYTES + length, size_bytes))


def write_header(file: BinaryIO, entries: Iterable[Entry]) -> None:
    """The header of a file that holds `entries`' tensors in that order; padded, so that they begin aligned."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.size_bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [begin, end]}
    raw = dumps(header, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    raw += b" " * (-len(raw) % _ALIGNMENT)
    file.write(len(raw).to_bytes(_LENGTH_BYTES, "little") + raw)


def _parse(raw: bytes, *, start: int) -> list[Entry]:
    if not raw.startswith(b"{"):
        raise SafetensorsError("its header does not begin with '{'")
    try:
        header = parse_strictly(raw)
    except ValueError as error:
        raise SafetensorsError(f"in its header, {error}") from error
    metadata = header.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise SafetensorsError("its __metadata__ is not an object of strings")
    return [_entry(name, described, start) for name, described in header.items()]


def _entry(name: str, described: object, start: int) -> Entry:
    if not (isinstance(described, dict) and described.keys() == {"dtype", "shape", "data_offsets"}):
        raise SafetensorsError(f"tensor {quoted(name)} is not described by dtype, shape and data_offsets alone")
    dtype, shape, offsets = described["dtype"], described["shape"], described["data_offsets"]
    if not (isinstance(dtype, str) and dtype in DTYPE_BITS):
        raise SafetensorsError(f"tensor {quoted(name)} has a dtype that the format has not: {quoted(str(dtype))}")
    if not (_are_sizes(shape) and len(shape) <= _ALIGNMENT):
        raise SafetensorsError(f"tensor {quoted(name)} has a shape that can't be")
    if not (_are_sizes(offsets) and len(offsets) == 2):  # noqa: PLR2004  — begin and end
        raise SafetensorsError(f"tensor {quoted(name)} has data_offsets that are not two byte positions")
    begin, end = offsets
    if math.prod(shape) * DTYPE_BITS[dtype] != (end - begin) * 8:
        raise SafetensorsError(f"tensor {quoted(name)} has {end - begin} bytes, which is not its shape times its dtype")
    return Entry(name, dtype, tuple(shape), start + begin, start + end)


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < _LARGEST for value in values)


def _contiguous(entries: list[Entry], start: int, size_bytes: int) -> Iterator[Entry]:
    end = start
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            raise SafetensorsError(f"tensor {quoted(entry.name)} leaves a gap or overlaps the one before it")
        end = entry.end
        yield entry
    if end != size_bytes:
        what = "is cut short" if end > size_bytes else "goes on after its last tensor"
        raise SafetensorsError(f"it {what}: {size_bytes} bytes where the header accounts for {end}")
