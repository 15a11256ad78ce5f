"""Every weight is a number, and so is everything that the engine computes with them.

One NaN reaches the other tenants: in a shared attention kernel, 0 × NaN from a freed cache block is NaN. It need not
stand in the file: an A of 3e38 and a B of 3e36 are finite each, and their product with any input is not.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from adapters.gate.config import LoraConfig
from adapters.gate.modules import Pair
from adapters.gate.weights import DTYPES
from adapters.limits import MAX_GAIN
from adapters.names import quoted
from adapters.refusals import Faults, Refusal
from adapters.safetensors import Entry

_LARGEST_BFLOAT16: Final = float.fromhex("0x1.fep127")
"""3.39e38. A float32 above it may round to infinity; no weight of any use comes near."""


@dataclass(frozen=True, slots=True)
class _Size:
    """How large a tensor is; NaN throughout if one of its values is."""

    largest: float
    """The largest absolute value."""
    norm: float
    """Frobenius': the root of the sum of squares. A matrix makes no vector longer by more than this."""


def check_values(path: Path, pairs: Iterable[Pair], config: LoraConfig | None, *, faults: Faults) -> bool:
    """Whether the adapter changes nothing: in every pair, A or B is zero throughout.

    With no config, nothing is said of what depends on the scale. Adds `not_finite` and `gain_too_large` to `faults`.
    """
    sizes: dict[Entry, _Size] = {}
    pairs = tuple(pair for pair in pairs if {pair.a.dtype, pair.b.dtype} <= DTYPES)
    with path.open("rb") as file:
        for pair in pairs:
            sizes[pair.a] = _measure(file, pair.a)
            sizes[pair.b] = _measure(file, pair.b)
    finite = tuple(pair for pair in pairs if not any(_overflowing([pair], sizes, config)))
    faults.add(Refusal.NOT_FINITE, _overflowing(pairs, sizes, config))
    faults.add(Refusal.GAIN_TOO_LARGE, _amplifying(finite, sizes, config))
    return all(0 in {sizes[pair.a].largest, sizes[pair.b].largest} for pair in pairs)


def _scale(pair: Pair, config: LoraConfig | None) -> float:
    return config.scale_of(pair.module) if config else 0.0


def _overflowing(pairs: Iterable[Pair], sizes: Mapping[Entry, _Size], config: LoraConfig | None) -> Iterator[str]:
    for pair in pairs:
        scale = _scale(pair, config)
        for entry in (pair.a, pair.b):
            if not sizes[entry].largest <= _LARGEST_BFLOAT16:  # NaN compares false
                yield f"{quoted(entry.name)} has a value that is NaN, infinite, or infinite in bfloat16"
            elif entry is pair.b and sizes[entry].largest * scale > _LARGEST_BFLOAT16:
                yield f"{quoted(entry.name)} is infinite once it is scaled by {scale:g}"


def _amplifying(pairs: Iterable[Pair], sizes: Mapping[Entry, _Size], config: LoraConfig | None) -> Iterator[str]:
    for pair in pairs:
        of_a, of_b = sizes[pair.a].norm, _scale(pair, config) * sizes[pair.b].norm
        # A small half does not make up for a large one: A's product with the input is rounded before B's turn comes.
        gains = {"scale · |A| · |B|": of_a * of_b, "|A|": of_a, "scale · |B|": of_b}
        for name, gain in gains.items():
            if not gain <= MAX_GAIN:
                yield f"{quoted(pair.module)} multiplies by up to {name} = {gain:.3g}; at most {MAX_GAIN:g} is allowed"
                break


def _measure(file: BinaryIO, entry: Entry) -> _Size:
    """A tensor's size. In float64, where no sum of squares of float32 overflows."""
    largest, squares = 0.0, 0.0
    # A maximum of NumPy's is NaN as soon as one value is, and so is a sum.
    with np.errstate(invalid="ignore"):
        for chunk in entry.read(file):
            values = _READ[entry.dtype](chunk).astype("<f8")
            largest = float(np.maximum(largest, np.abs(values).max()))
            squares += float(values @ values)
    return _Size(largest, math.sqrt(squares))


def _from_bfloat16(chunk: bytes) -> NDArray[Any]:
    """Its 16 bits are a float32's upper half."""
    return (np.frombuffer(chunk, "<u2").astype("<u4") << 16).view("<f4")


_READ: Final[Mapping[str, Callable[[bytes], NDArray[Any]]]] = {
    "F32": lambda chunk: np.frombuffer(chunk, "<f4"),
    "F16": lambda chunk: np.frombuffer(chunk, "<f2"),
    "BF16": _from_bfloat16,
}
