"""Every weight is a number, in bfloat16 too, and not every weight is zero.

One NaN reaches whoever shares a kernel with it (`adapters.gate.values`). Told from the bits: without their sign, the
words of a float are ordered as the floats are, and NaN and infinity lie above all others.

Of a quantised layer, every whole number is a weight: what must be sound are its scales, so that the largest weight is
finite, and what says its shape.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import numpy as np

from adapters.gate.checkpoint.shards import Stored
from adapters.names import quoted
from adapters.refusals import Faults, Refusal

_WORDS: Final[Mapping[str, tuple[str, int, int]]] = {
    "F32": ("<u4", 0x7FFF_FFFF, 0x7F7F_0000),
    "F16": ("<u2", 0x7FFF, 0x7BFF),
    "BF16": ("<u2", 0x7FFF, 0x7F7F),
    "F8_E4M3": ("u1", 0x7F, 0x7E),
}
"""dtype → its word, the word without the sign, and the largest that is finite in bfloat16 (3.39e38)."""

_SCALE: Final = ".weight_scale"
_SCALE_LIMITS: Final[Mapping[str, int]] = {"F32": 0x7AFF_0000, "F16": 0x7BFF, "BF16": 0x7AFF}
"""The largest scale: 512 times less than the largest float, for the codes go up to 448."""
_SHAPE: Final = ".weight_shape"
_TOLD: Final = ("I64", (2,))
"""The dtype and shape of what says a layer's shape: anything else is not read, for it may be as large as a shard."""
_PACKED: Final = ".weight_packed"
_PER_WORD: Final = 8
"""Of 4 bits each."""


def check_values(tensors: Iterable[Stored], *, faults: Faults) -> None:
    """Add `not_finite`, `all_zero` and, for a shape that is told wrong, `tensor_mismatch` to `faults`.

    Memory stays at one chunk.
    """
    tensors = tuple(tensors)
    faults.add(Refusal.TENSOR_MISMATCH, _wrong_shapes(tensors))
    largest = {tensor.name: _largest(tensor) for tensor in tensors if tensor.entry.dtype in _WORDS}
    faults.add(
        Refusal.NOT_FINITE,
        (
            f"{quoted(name)} has a value that is NaN, infinite, or infinite in bfloat16"
            for name, (word, limit) in largest.items()
            if word > limit
        ),
    )
    scales = {name: each for name, each in largest.items() if name.endswith(_SCALE)}
    if _are_zero(largest):
        faults.add(Refusal.ALL_ZERO, ["every weight is zero"])
    elif _are_zero(scales):
        faults.add(Refusal.ALL_ZERO, ["every scale is zero, and with it every weight of the quantised layers"])


def _are_zero(largest: Mapping[str, tuple[int, int]]) -> bool:
    return bool(largest) and not any(word for word, _ in largest.values())


def _largest(tensor: Stored) -> tuple[int, int]:
    """The tensor's largest word, and the largest that is allowed."""
    kind, mask, limit = _WORDS[tensor.entry.dtype]
    if tensor.name.endswith(_SCALE):
        limit = _SCALE_LIMITS[tensor.entry.dtype]
    chunks = (np.frombuffer(chunk, kind) & np.array(mask, kind) for chunk in tensor.read())
    return max((int(words.max()) for words in chunks), default=0), limit


def _wrong_shapes(tensors: Iterable[Stored]) -> Iterator[str]:
    """What a packed layer says of itself must be what it unpacks to: the engine takes it by its word."""
    packed = {
        tensor.name.removesuffix(_PACKED): tensor.entry.shape for tensor in tensors if tensor.name.endswith(_PACKED)
    }
    for tensor in tensors:
        match packed.get(tensor.name.removesuffix(_SHAPE)):
            case (outputs, words) if (tensor.entry.dtype, tensor.entry.shape) == _TOLD:
                said = np.frombuffer(b"".join(tensor.read()), "<i8").tolist()
                if said != [outputs, words * _PER_WORD]:
                    yield f"{quoted(tensor.name)} says {said} where the layer is {[outputs, words * _PER_WORD]}"
