"""A safetensors file, as far as its header tells: is it one at all, and in a dtype that the engine adds up."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from adapters.limits import MAX_HEADER_BYTES, MAX_TENSORS
from adapters.names import quoted
from adapters.refusals import Faults, Refusal
from adapters.safetensors import Entry, SafetensorsError, read_entries

DTYPES: Final = frozenset({"F32", "F16", "BF16"})

_MOST: Final[Mapping[bytes, int]] = {b"{": 2 * MAX_TENSORS, b"[": 3 * MAX_TENSORS, b",": 8 * MAX_TENSORS}
"""A tensor's entry has one brace, two brackets and six commas; the rest is for metadata."""

_DISGUISES: Final[Mapping[bytes, tuple[Refusal, str]]] = {
    b"PK\x03\x04": (Refusal.UNSUPPORTED_FORMAT, "a zip or a PyTorch checkpoint, renamed"),
    b"\x80": (Refusal.UNSUPPORTED_FORMAT, "a pickle, renamed"),
    b"GGUF": (Refusal.UNSUPPORTED_FORMAT, "a GGUF, renamed"),
    b"\x1f\x8b": (Refusal.UNSUPPORTED_FORMAT, "a gzip file, renamed"),
    b"version https://git-lfs": (
        Refusal.SAFETENSORS_INVALID,
        "a Git LFS pointer: fetch the file itself with `git lfs pull`",
    ),
    b"<": (Refusal.SAFETENSORS_INVALID, "an HTML or XML page, perhaps an error from the download"),
}
"""What people send by mistake, by its first bytes. A header's length may begin so too: the parser is asked first."""


def read_tensors(path: Path, *, faults: Faults, dtypes: frozenset[str] = DTYPES) -> tuple[Entry, ...] | None:
    """The tensors, whatever their dtypes; None if there is no telling. Those in other than `dtypes` are faults.

    Adds `safetensors_invalid`, `unsupported_format` and `unsupported_dtype` to `faults`.
    """
    try:
        _require_modest(path)
        entries = read_entries(path, max_header_bytes=MAX_HEADER_BYTES)
    except SafetensorsError as error:
        code, what = _disguise(path) or (Refusal.SAFETENSORS_INVALID, str(error))
        faults.add(code, [f"{path.name} is not a valid safetensors file: {what}"])
        return None
    if len(entries) > MAX_TENSORS:
        too_many = f"{path.name} has {len(entries)} tensors; at most {MAX_TENSORS} are allowed"
        faults.add(Refusal.SAFETENSORS_INVALID, [too_many])
        return None
    faults.add(
        Refusal.UNSUPPORTED_DTYPE,
        (
            f"{quoted(entry.name)} is {entry.dtype}, not {_listed(dtypes)}"
            for entry in entries
            if entry.dtype not in dtypes
        ),
    )
    return entries


def _listed(dtypes: frozenset[str]) -> str:
    return "F32, F16 or BF16" if dtypes == DTYPES else f"one of {', '.join(sorted(dtypes))}"


def _require_modest(path: Path) -> None:
    """Refuse a header of a million brackets before it becomes as many objects: 4 MB of `{},` take 150 MB parsed."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= MAX_HEADER_BYTES else b""
    if any(header.count(mark) > most for mark, most in _MOST.items()):
        raise SafetensorsError("its header describes more than tensors")


def _disguise(path: Path) -> tuple[Refusal, str] | None:
    with path.open("rb") as file:
        head = file.read(32)
    if not head:
        return Refusal.SAFETENSORS_INVALID, "it is empty"
    return next((told for magic, told in _DISGUISES.items() if head.startswith(magic)), None)
