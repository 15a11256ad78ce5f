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
MAX_ALPHA: Final = 1 << 16
MAX_SCALE: Final = 64.0
"""|alpha / r|. Trained adapters use 1 or 2, rarely 16."""
MAX_ORIGIN_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class Limits:
    """What an operator may choose."""

    max_rank: int = 64
    max_upload_bytes: int = 1 << 31
