"""The weights that QLoRA computes with: each linear layer's, through bitsandbytes' four bits and back."""

from dataclasses import dataclass

import torch
from bitsandbytes import functional

from trainer.artifacts.shards import DTYPES
from trainer.conversion.tensor_files import TensorFiles


@dataclass(frozen=True, slots=True)
class Nf4:
    """How a run held a base."""

    base: TensorFiles
    modules: frozenset[str]
    """Those that were quantised; the rest it held as they are."""
    is_double: bool
    dtype: torch.dtype | None
    """What it held the base in before it was quantised; None: as each tensor is stored."""

    def dequantised(self, module: str, weight: torch.Tensor) -> torch.Tensor:
        """The module's weight in float32."""
        stored = DTYPES[self.base.dtype(f"{module}.weight")]
        return dequantised(weight, double=self.is_double, dtype=self.dtype or stored)


def dequantised(weight: torch.Tensor, *, double: bool, dtype: torch.dtype) -> torch.Tensor:
    """`weight` (out, in) as NF4 holds it, in blocks of 64, in float32; `double`: their scales quantised, too.

    Quantised from `dtype`, for it decides which codes are nearest: a random float32 matrix comes out otherwise by 2.4 %
    if it was bfloat16 in between.
    """
    rounded = weight.to(dtype).contiguous()
    packed, state = functional.quantize_4bit(rounded, compress_statistics=double, quant_type="nf4")
    restored: torch.Tensor = functional.dequantize_4bit(packed, state)
    return restored.to(torch.float32)
