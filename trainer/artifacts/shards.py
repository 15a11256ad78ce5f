"""A safetensors file written one tensor at a time, so that memory never holds more than that one."""

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

import torch

from trainer.errors import ArtifactError

DTYPES: Final = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Those that weights are computed in, by safetensors' names."""
BYTES: Final = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""Of all dtypes that have whole bytes, as `adapters.safetensors` has them."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor's place in a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """How much room it takes. Raises ArtifactError for a dtype that has no whole bytes, or is none."""
        if self.dtype not in BYTES:
            raise ArtifactError(f"{self.name}: is {self.dtype}, which can't be copied; known are {', '.join(BYTES)}.")
        return BYTES[self.dtype] * prod(self.shape)


def write_shard(path: Path, slots: Sequence[Slot], read: Callable[[Slot], torch.Tensor]) -> None:
    """The tensors in the order of `slots`; `read` gives each when its turn comes, in its dtype and shape."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for slot in slots:
        begin, end = end, end + slot.size_bytes
        header[slot.name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for slot in slots:
            file.write(read(slot).contiguous().reshape(-1).view(torch.uint8).numpy().data)
