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

# --- models -----------------------------------------------------------------------------------------------------------

MAX_SHARDS: Final = 1000
"""The largest models come in some hundreds."""
MAX_MODEL_MEMBERS: Final = MAX_SHARDS + 32
MAX_INDEX_BYTES: Final = 1 << 24
"""A tensor's line has 110 bytes; 45 000 tensors (256 experts in each of 58 layers) take 5 MB."""
MAX_TOKENIZER_BYTES: Final = 40 << 20
"""Gemma's, with 262 144 tokens, has 33 MB; most have 2 to 17."""
MAX_TOKENIZER_VALUES: Final = 1 << 22
"""Gemma's has 1.4 million. What is parsed takes some 100 bytes a value."""
MAX_TOKENIZER_CONFIG_BYTES: Final = 4 << 20
"""Gemma's describes each of its 6400 added tokens in 1.1 MB; most have 1 to 50 KB."""
MAX_TOKENIZER_STEPS: Final = 64
MAX_STEP_CHARACTERS: Final = 1 << 14
MAX_VOCABULARY: Final = 1 << 24
SHARD_BYTES: Final = 5_000_000_000
"""A stored model's weights are cut anew into files of this size, as transformers cut them for years."""


@dataclass(frozen=True)
class Limits:
    """What an operator may choose."""

    max_rank: int = 64
    max_upload_bytes: int = 1 << 31
    max_model_bytes: int = 64 << 30
    """All the weights of one model."""
