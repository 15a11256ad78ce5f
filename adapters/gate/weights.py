"""adapter_model.safetensors, as far as its header tells: is it one at all, and in a dtype that the engine adds up."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from adapters.digests import WEIGHTS_FILE
from adapters.limits import MAX_HEADER_BYTES, MAX_TENSORS
from adapters.names import quoted
from adapters.refusals import Refusal, refusal, refuse_any
from adapters.safetensors import Entry, SafetensorsError, read_entries

DTYPES: Final = frozenset({"F32", "F16", "BF16"})

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


def read_tensors(path: Path) -> tuple[Entry, ...]:
    """The tensors. Raises RefusedError `safetensors_invalid`, `unsupported_format` or `unsupported_dtype`."""
    try:
        entries = read_entries(path, max_header_bytes=MAX_HEADER_BYTES)
    except SafetensorsError as error:
        code, what = _disguise(path) or (Refusal.SAFETENSORS_INVALID, str(error))
        raise refusal(code, f"{WEIGHTS_FILE} is not a valid safetensors file: {what}.") from error
    if len(entries) > MAX_TENSORS:
        raise refusal(
            Refusal.SAFETENSORS_INVALID,
            f"{WEIGHTS_FILE} has {len(entries)} tensors; at most {MAX_TENSORS} are allowed.",
        )
    refuse_any(
        Refusal.UNSUPPORTED_DTYPE,
        (
            f"{quoted(entry.name)} is {entry.dtype}, not F32, F16 or BF16"
            for entry in entries
            if entry.dtype not in DTYPES
        ),
    )
    return entries


def _disguise(path: Path) -> tuple[Refusal, str] | None:
    with path.open("rb") as file:
        head = file.read(32)
    if not head:
        return Refusal.SAFETENSORS_INVALID, "it is empty"
    return next((told for magic, told in _DISGUISES.items() if head.startswith(magic)), None)
