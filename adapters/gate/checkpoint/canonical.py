"""All files written anew from what the gate understood. Invariant: equal models of one base give equal bytes.

However the upload's weights were cut: here they lie by name, in files of at most `SHARD_BYTES`, unless one tensor alone
is larger.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.gate.checkpoint import names
from adapters.gate.checkpoint.documents import as_text
from adapters.gate.checkpoint.shards import Stored
from adapters.limits import SHARD_BYTES
from adapters.safetensors import DTYPE_BITS, write_header


@dataclass(frozen=True, slots=True)
class Documents:
    """All of a checkpoint but its weights, and the config.json that follows from them."""

    generation_config: Mapping[str, Any] | None
    tokenizer: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]
    template: bytes | None


def write_documents(folder: Path, config: Mapping[str, Any], documents: Documents) -> None:
    """The files besides the weights and their index."""
    _write(folder / names.CONFIG, config)
    if documents.generation_config:
        _write(folder / names.GENERATION_CONFIG, documents.generation_config)
    _write(folder / names.TOKENIZER, documents.tokenizer, indent=None)
    _write(folder / names.TOKENIZER_CONFIG, documents.tokenizer_config)
    if documents.template is not None:
        (folder / names.TEMPLATE).write_bytes(documents.template)


def write_weights(folder: Path, tensors: Iterable[Stored], *, shard_bytes: int = SHARD_BYTES) -> None:
    """The tensors, and an index if they make more than one file. Memory stays at one chunk."""
    shards = list(_cut(tensors, shard_bytes))
    if len(shards) == 1:
        _write_shard(folder / names.WEIGHTS, shards[0])
        return
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = names.shard_name(number, len(shards))
        _write_shard(folder / name, shard)
        index |= dict.fromkeys((tensor.name for tensor in shard), name)
    total_bytes = sum(tensor.entry.size_bytes for shard in shards for tensor in shard)
    _write(folder / names.INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": index})


def dtype_sizes(tensors: Iterable[Stored]) -> Mapping[str, int]:
    """How many bytes there are of each dtype."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.entry.dtype] += tensor.entry.size_bytes
    return sizes


def _cut(tensors: Iterable[Stored], shard_bytes: int) -> Iterator[list[Stored]]:
    shard: list[Stored] = []
    size_bytes = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        if shard and size_bytes + tensor.entry.size_bytes > shard_bytes:
            yield shard
            shard, size_bytes = [], 0
        shard.append(tensor)
        size_bytes += tensor.entry.size_bytes
    yield shard


def _write_shard(path: Path, shard: Iterable[Stored]) -> None:
    # The widest first, so that each tensor lies aligned to its own width.
    ordered = sorted(shard, key=lambda tensor: (-DTYPE_BITS[tensor.entry.dtype], tensor.name))
    with path.open("xb") as file:
        write_header(file, (tensor.entry for tensor in ordered))
        for tensor in ordered:
            file.writelines(tensor.read())


def _write(path: Path, document: Mapping[str, Any], *, indent: int | None = 2) -> None:
    path.write_text(as_text(document, indent=indent), encoding="utf-8")
