"""The tensors against the base's own: the same names and shapes, but for the vocabulary's size and a tied head."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from adapters.gate.checkpoint.config import CheckpointConfig
from adapters.gate.checkpoint.shards import Stored
from adapters.names import quoted
from adapters.refusals import Faults, Refusal
from adapters.values import Base

_HEAD: Final = "lm_head.weight"
_EMBEDDINGS: Final = frozenset({"embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings"})
_HEADS: Final = frozenset({"lm_head", "embed_out"})
_DERIVED: Final = ".rotary_emb.inv_freq"
"""Follows from the config; older checkpoints store it, and nothing reads it."""


def match_tensors(
    stored: Iterable[Stored], config: CheckpointConfig, base: Base, *, faults: Faults
) -> tuple[Stored, ...]:
    """What there is to keep: all but a head that is tied, and what follows from the config anyhow.

    Adds `tensor_mismatch` to `faults`.
    """
    found = {tensor.name: tensor for tensor in stored if not tensor.name.endswith(_DERIVED)}
    expected = _expected(config, base)
    embedding = _embedding(base.tensors)
    tied = found.get(_HEAD) if config.is_tied and embedding else None
    if tied is not None:
        faults.add(Refusal.TENSOR_MISMATCH, _untied(tied, found.get(embedding or "")))
        del found[_HEAD]
    faults.add(Refusal.TENSOR_MISMATCH, _mismatches(found, expected))
    return tuple(found[name] for name in sorted(found.keys() & expected.keys()))


def _expected(config: CheckpointConfig, base: Base) -> dict[str, tuple[int, ...]]:
    """Every tensor that must be there → its shape."""
    shapes = {
        name: _resized(name, tuple(shape), config)
        for name, shape in base.tensors.items()
        if not name.endswith(_DERIVED)
    }
    if embedding := _embedding(base.tensors):
        shapes.setdefault(_HEAD, shapes[embedding])
        if config.is_tied:
            del shapes[_HEAD]
    return shapes


def _resized(name: str, shape: tuple[int, ...], config: CheckpointConfig) -> tuple[int, ...]:
    is_of_vocabulary = _module(name) in _EMBEDDINGS | _HEADS and shape[:1] == (config.base_vocabulary,)
    return (config.vocabulary, *shape[1:]) if is_of_vocabulary else shape


def _embedding(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The one tensor that a tied head would be; None where there is no telling."""
    found = [name for name in shapes if name.endswith(".weight") and _module(name) in _EMBEDDINGS]
    has_other_head = any(_module(name) == "embed_out" for name in shapes)
    return found[0] if len(found) == 1 and not has_other_head else None


def _module(name: str) -> str:
    """The last name of the module that a tensor belongs to."""
    return name.rpartition(".")[0].rpartition(".")[2]


def _untied(head: Stored, embedding: Stored | None) -> Iterator[str]:
    if embedding is not None and _content(head) != _content(embedding):
        yield f"config.json ties the head to the embeddings, yet {_HEAD} is not {quoted(embedding.name)}"


def _content(tensor: Stored) -> tuple[str, tuple[int, ...], str]:
    total = hashlib.sha256()
    for chunk in tensor.read():
        total.update(chunk)
    return tensor.entry.dtype, tensor.entry.shape, total.hexdigest()


def _mismatches(found: Mapping[str, Stored], expected: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name in sorted(expected.keys() - found.keys()):
        yield f"{quoted(name)} is missing"
    for name in sorted(found.keys() - expected.keys()):
        yield f"the base has no tensor {quoted(name)}"
    for name in sorted(found.keys() & expected.keys()):
        if found[name].entry.shape != expected[name]:
            shape, right = list(found[name].entry.shape), list(expected[name])
            yield f"{quoted(name)} is {shape} where base and vocabulary want {right}"
