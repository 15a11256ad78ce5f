"""What the files of a checkpoint are called."""

import re
from typing import Final

CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"
TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
TEMPLATE: Final = "chat_template.jinja"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

_SHARD: Final = re.compile(r"model-([0-9]{5})-of-([0-9]{5})\.safetensors")


def shard_name(number: int, count: int) -> str:
    """`model-00001-of-00003.safetensors`, as transformers counts: from 1."""
    return f"model-{number:05}-of-{count:05}.safetensors"


def shard_count(name: str) -> int | None:
    """How many shards a shard says that there are; None if it is not called as one."""
    match = _SHARD.fullmatch(name)
    return int(match[2]) if match else None


def is_weights(name: str) -> bool:
    """Whether a file of this name holds tensors."""
    return name == WEIGHTS or shard_count(name) is not None
