"""Every weight is a number, and stays one in bfloat16 and when scaled.

One NaN reaches the other tenants: in a shared attention kernel, 0 × NaN from a freed cache block is NaN.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from adapters.gate.modules import Pair
from adapters.names import quoted
from adapters.refusals import Refusal, refuse_any
from adapters.safetensors import Entry

_LARGEST_BFLOAT16: Final = float.fromhex("0x1.fep127")
"""3.39e38. A float32 above it may round to infinity; no weight of any use comes near."""


def check_values(path: Path, pairs: Iterable[Pair], *, scale: float) -> bool:
    """Whether the adapter changes nothing: in every pair, A or B is zero throughout.

    Raises:
        RefusedError: `not_finite`.
    """
    largest: dict[Entry, float] = {}
    pairs = tuple(pairs)
    with path.open("rb") as file:
        for pair in pairs:
            largest[pair.a] = _largest(file, pair.a)
            largest[pair.b] = _largest(file, pair.b)
    refuse_any(Refusal.NOT_FINITE, _overflowing(pairs, largest, scale))
    return all(0 in {largest[pair.a], largest[pair.b]} for pair in pairs)


def _overflowing(pairs: Iterable[Pair], largest: Mapping[Entry, float], scale: float) -> Iterator[str]:
    for pair in pairs:
        for entry in (pair.a, pair.b):
            if not largest[entry] <= _LARGEST_BFLOAT16:  # NaN compares false
                yield f"{quoted(entry.name)} has a value that is NaN, infinite, or infinite in bfloat16"
            elif entry is pair.b and largest[entry] * scale > _LARGEST_BFLOAT16:
                yield f"{quoted(entry.name)} is infinite once it is scaled by {scale:g}"


def _largest(file: BinaryIO, entry: Entry) -> float:
    """The largest absolute value of a tensor; NaN if one of them is."""
    # A maximum of NumPy's is NaN as soon as one value is.
    with np.errstate(invalid="ignore"):
        return float(np.max([np.abs(_READ[entry.dtype](chunk)).max() for chunk in entry.read(file)]))


def _from_bfloat16(chunk: bytes) -> NDArray[Any]:
    """Its 16 bits are a float32's upper half."""
    return (np.frombuffer(chunk, "<u2").astype("<u4") << 16).view("<f4")


_READ: Final[Mapping[str, Callable[[bytes], NDArray[Any]]]] = {
    "F32": lambda chunk: np.frombuffer(chunk, "<f4"),
    "F16": lambda chunk: np.frombuffer(chunk, "<f2"),
    "BF16": _from_bfloat16,
}
