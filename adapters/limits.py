"""How much the gate lets in. Settings may change the fields; the rest is fixed, each with its reason."""

from dataclasses import dataclass
from typing import Final

MAX_CONFIG_BYTES: Final = 1 << 18
"""PEFT writes 1 to 2 KB."""
MAX_HEADER_BYTES: Final = 1 << 22
"""420 tensors take 55 KB; the largest models have some thousands."""
MAX_TENSORS: Final = 1 << 15
MAX_MEMBERS: Final = 16
"""An adapter is two files and perhaps a README.md; beyond this nobody lists what is wrong."""
MAX_HEADERS: Final = 64
"""All of an archive's headers: each member may bring folders, and what the packer notes of it (times, owners)."""
MAX_EXTENDED_HEADER_BYTES: Final = 1 << 16
"""All that a tar's packer notes; a member takes 1 KB."""
MAX_ALPHA: Final = 1 << 16
MAX_SCALE: Final = 64.0
"""|alpha / r|. Trained adapters use 1 or 2, rarely 16."""
MAX_GAIN: Final = 1e4
"""scale · ‖A‖ · ‖B‖ of a module, by Frobenius' norms: no input grows by more. Also ‖A‖ and scale · ‖B‖ by themselves.

Trained adapters lie around 1e0 to 1e2. A layer's input, just normalised, has a norm of 1e3 at the most, so that a
module adds 1e7. The largest product in a transformer is the MLP's: two such, and down_proj's gain again, is 1e18, whose
square the next norm takes in float32: 1e36, where bfloat16 and float32 end at 3e38. (float16 ends at 6.6e4, which a
base may pass without any adapter: there, the probe has to find it.)
"""
MAX_ORIGIN_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class Limits:
    """What an operator may choose."""

    max_rank: int = 64
    max_upload_bytes: int = 1 << 31
