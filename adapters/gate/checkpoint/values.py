"""Every weight is a number, in bfloat16 too, and not every weight is zero.

One NaN reaches whoever shares a kernel with it (`adapters.gate.values`). Told from the bits: without their sign, the
words of a float are ordered as the floats are, and NaN and infinity lie above all others.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from adapters.gate.checkpoint.shards import Stored
from adapters.names import quoted
from adapters.refusals import Faults, Refusal

_WORDS: Final[Mapping[str, tuple[str, int, int]]] = {
    "F32": ("<u4", 0x7FFF_FFFF, 0x7F7F_0000),
    "F16": ("<u2", 0x7FFF, 0x7BFF),
    "BF16": ("<u2", 0x7FFF, 0x7F7F),
}
"""dtype → its word, the word without the sign, and the largest that is finite in bfloat16 (3.39e38)."""


def check_values(tensors: Iterable[Stored], *, faults: Faults) -> None:
    """Add `not_finite` and `all_zero` to `faults`."""
    largest = {tensor.name: _largest(tensor) for tensor in tensors if tensor.entry.dtype in _WORDS}
    faults.add(
        Refusal.NOT_FINITE,
        (
            f"{quoted(name)} has a value that is NaN, infinite, or infinite in bfloat16"
            for name, (word, limit) in largest.items()
            if word > limit
        ),
    )
    if largest and not any(word for word, _ in largest.values()):
        faults.add(Refusal.ALL_ZERO, ["every weight is zero"])


def _largest(tensor: Stored) -> tuple[int, int]:
    """The tensor's largest word, and the largest that is allowed."""
    kind, mask, limit = _WORDS[tensor.entry.dtype]
    chunks = (np.frombuffer(chunk, kind) & np.array(mask, kind) for chunk in tensor.read())
    return max((int(words.max()) for words in chunks), default=0), limit
