"""The weights as far as their headers tell: tensors that an engine adds up, each in one shard, where the index says."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapters.gate.checkpoint import names
from adapters.gate.checkpoint.documents import read_object
from adapters.gate.weights import DTYPES, read_tensors
from adapters.names import quoted
from adapters.refusals import Faults, Refusal
from adapters.safetensors import Entry

QUANTISED_DTYPES: Final = frozenset({"I8", "I32", "I64", "F8_E4M3"})
"""Of the tensors that a quantised layer is made of; which of them where is `tensors`' to say."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor, and the file that holds it."""

    path: Path
    entry: Entry

    @property
    def name(self) -> str:
        """The tensor's own."""
        return self.entry.name

    def read(self) -> Iterator[bytes]:
        """Its bytes, in chunks."""
        with self.path.open("rb") as file:
            yield from self.entry.read(file)


def read_shards(folder: Path, *, is_quantised: bool = False, faults: Faults) -> tuple[Stored, ...] | None:
    """All tensors by name; None if not every file could be read.

    Adds `safetensors_invalid`, `unsupported_format`, `unsupported_dtype` and `index_mismatch` to `faults`.
    """
    found: list[Stored] = []
    is_whole = True
    for path in sorted(path for path in folder.iterdir() if names.is_weights(path.name)):
        dtypes = DTYPES | QUANTISED_DTYPES if is_quantised else DTYPES
        entries = read_tensors(path, faults=faults, dtypes=dtypes)
        is_whole = is_whole and entries is not None
        found += [Stored(path, entry) for entry in entries or ()]
    if not is_whole:
        return None
    shards = {tensor.name: tensor.path.name for tensor in found}
    faults.add(Refusal.INDEX_MISMATCH, _twice(found, shards))
    index = read_object(folder / names.INDEX, faults=faults, code=Refusal.INDEX_MISMATCH)
    if index is not None:
        faults.add(Refusal.INDEX_MISMATCH, _mistaken(index.get("weight_map"), shards))
    return tuple(sorted(found, key=lambda tensor: tensor.name))


def _twice(found: Iterable[Stored], shards: Mapping[str, str]) -> Iterator[str]:
    for tensor in found:
        if shards[tensor.name] != tensor.path.name:
            yield f"{quoted(tensor.name)} is in {tensor.path.name} and in {shards[tensor.name]}"


def _mistaken(index: Any, shards: Mapping[str, str]) -> Iterator[str]:  # noqa: ANN401  — JSON
    if not isinstance(index, dict):
        yield f"{names.INDEX} has no weight_map from tensors to files"
        return
    for name in sorted(index.keys() | shards.keys()):
        if name not in index:
            yield f"{names.INDEX} does not name {quoted(name)}, which is in {shards[name]}"
        elif name not in shards:
            yield f"{names.INDEX} names {quoted(name)}, which is in no file"
        elif index[name] != shards[name]:
            yield f"{names.INDEX} has {quoted(name)} in another file than {shards[name]}"
