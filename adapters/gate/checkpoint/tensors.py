"""The tensors against the base's own: the same names and shapes, but for the vocabulary's size and a tied head.

Where the weights are quantised, each layer's is replaced by the tensors that follow from it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from adapters.gate.checkpoint.config import CheckpointConfig
from adapters.gate.checkpoint.quantization import FLOATS, Layout
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

    Invariant: each has its shape and a dtype of its own, also where there are faults: only such may be looked into.
    Adds `tensor_mismatch` and `unsupported_dtype` to `faults`.
    """
    found = {tensor.name: tensor for tensor in stored if not tensor.name.endswith(_DERIVED)}
    expected = _expected(config, base)
    embedding = _embedding(base.tensors)
    tied = found.get(_HEAD) if config.is_tied and embedding else None
    if tied is not None:
        faults.add(Refusal.TENSOR_MISMATCH, _untied(tied, found.get(embedding or "")))
        del found[_HEAD]
    faults.add(Refusal.TENSOR_MISMATCH, _mismatches(found, expected))
    faults.add(Refusal.UNSUPPORTED_DTYPE, _wrong_dtypes(found, expected))
    return tuple(found[name] for name in sorted(found.keys() & expected.keys()) if _fits(found[name], *expected[name]))


def _expected(config: CheckpointConfig, base: Base) -> Layout:
    """Every tensor that must be there."""
    shapes = {
        name: _resized(name, tuple(shape), config)
        for name, shape in base.tensors.items()
        if not name.endswith(_DERIVED)
    }
    if embedding := _embedding(base.tensors):
        shapes.setdefault(_HEAD, shapes[embedding])
        if config.is_tied:
            del shapes[_HEAD]
    if config.quantization is not None:
        return config.quantization.layout(shapes, base)
    return {name: (shape, FLOATS) for name, shape in shapes.items()}


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


def _fits(tensor: Stored, shape: tuple[int, ...], dtypes: frozenset[str]) -> bool:
    return tensor.entry.shape == shape and tensor.entry.dtype in dtypes


def _mismatches(found: Mapping[str, Stored], expected: Layout) -> Iterator[str]:
    for name in sorted(expected.keys() - found.keys()):
        yield f"{quoted(name)} is missing"
    for name in sorted(found.keys() - expected.keys()):
        yield f"the base has no tensor {quoted(name)}"
    for name in sorted(found.keys() & expected.keys()):
        if found[name].entry.shape != expected[name][0]:
            shape, right = list(found[name].entry.shape), list(expected[name][0])
            yield f"{quoted(name)} is {shape} where base and vocabulary want {right}"


def _wrong_dtypes(found: Mapping[str, Stored], expected: Layout) -> Iterator[str]:
    for name in sorted(found.keys() & expected.keys()):
        dtype, right = found[name].entry.dtype, expected[name][1]
        if dtype not in right:
            yield f"{quoted(name)} is {dtype}, not {' or '.join(sorted(right))}"
