"""The tensors against the base: each pair belongs to a linear layer that the base has, in the shapes that follow.

An engine that loads first and looks later leaves out what it does not know, and copies what is too small into a corner.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from adapters.gate.config import LoraConfig, too_large
from adapters.gate.conversions import convertible_tensors, is_convertible
from adapters.names import quoted
from adapters.refusals import Faults, Refusal
from adapters.safetensors import Entry
from adapters.values import Base, Module

_TENSOR: Final = re.compile(r"base_model\.model\.([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\.lora_([AB])\.weight")
_LAYER: Final = re.compile(r"(?:[^.]+\.)*?[0-9]+(?=\.)")
"""A module's path up to the first number: the layer that it is in."""
_MATRIX: Final = 2


@dataclass(frozen=True, slots=True)
class Pair:
    """One module's two tensors: it adds scale · B · A, with A of (r, in) and B of (out, r)."""

    module: str
    a: Entry
    b: Entry

    @property
    def suffix(self) -> str:
        """The module's last name."""
        return self.module.rpartition(".")[2]


def match_modules(
    tensors: Iterable[Entry], config: LoraConfig | None, base: Base, *, faults: Faults
) -> tuple[Pair, ...]:
    """The pairs that fit the base, by module. With no config, A's own rank counts.

    Adds `invalid_tensor_name`, `needs_conversion`, `missing_pair`, `unknown_module`, `shape_mismatch` and
    `scale_too_large` to `faults`.
    """
    halves: dict[str, dict[str, Entry]] = {}
    misnamed: list[str] = []
    for tensor in tensors:
        if match := _TENSOR.fullmatch(tensor.name):
            halves.setdefault(match[1], {})[match[2]] = tensor
        else:
            misnamed.append(tensor.name)
    faults.add(Refusal.INVALID_TENSOR_NAME, (_misnamed(name) for name in misnamed if not is_convertible(name)))
    faults.add(Refusal.NEEDS_CONVERSION, convertible_tensors(misnamed))
    if not misnamed or halves:
        faults.add(Refusal.MISSING_PAIR, _unpaired(halves))

    pairs = tuple(
        Pair(module, pair["A"], pair["B"]) for module, pair in sorted(halves.items()) if len(pair) == len("AB")
    )
    known = tuple(pair for pair in pairs if pair.module in base.modules)
    fitting = tuple(pair for pair in known if not any(_misshapen([pair], config, base)))
    told = _another_base(pairs, base)
    faults.add(Refusal.UNKNOWN_MODULE, _unknown(pairs, base), heading=told)
    faults.add(
        Refusal.SHAPE_MISMATCH, _misshapen(known, config, base), heading=told if len(known) == len(pairs) else None
    )
    if config is not None:
        faults.add(Refusal.UNKNOWN_MODULE, _untargeted(known, config))
        faults.add(Refusal.SCALE_TOO_LARGE, _overscaled(fitting, config))
    return fitting


# --- names ------------------------------------------------------------------------------------------------------------


def _misnamed(name: str) -> str:
    return f"{quoted(name)} is not called base_model.model.<module>.lora_A.weight or lora_B.weight{_hint(name)}"


def _hint(name: str) -> str:
    if ".lora_embedding_" in name:
        return ": embeddings are not adapted here, only linear layers"
    if ".lora_A." in name or ".lora_B." in name:
        return ": it is as PEFT has it in memory; write it with save_pretrained"
    if name.endswith((".bias", "_layer.weight")) or ".modules_to_save." in name:
        return ": biases and whole modules (modules_to_save) belong to the base"
    return ""


def _unpaired(halves: Mapping[str, Mapping[str, Entry]]) -> Iterator[str]:
    if not halves:
        yield "There is no tensor in it"
    for module, pair in halves.items():
        for side in sorted({"A", "B"} - pair.keys()):
            yield f"{quoted(module)} has no lora_{side}: each module needs both"


# --- modules ----------------------------------------------------------------------------------------------------------


def _unknown(pairs: Iterable[Pair], base: Base) -> Iterator[str]:
    for pair in pairs:
        if pair.module not in base.modules:
            yield f"the base {quoted(base.name)} has no linear layer {quoted(pair.module)}"


def _untargeted(pairs: Iterable[Pair], config: LoraConfig) -> Iterator[str]:
    for pair in pairs:
        if not _is_targeted(pair.module, config.target_modules):
            yield f"{quoted(pair.module)} has tensors, but target_modules does not name it"


def _is_targeted(module: str, targets: frozenset[str]) -> bool:
    """As PEFT matches plain names: the full path, or the end of it from a dot on."""
    names = module.split(".")
    return any(".".join(names[start:]) in targets for start in range(len(names)))


def _overscaled(pairs: Iterable[Pair], config: LoraConfig) -> Iterator[str]:
    if config.ranks or config.alphas:
        for pair in pairs:
            rank, alpha = config.rank_of(pair.module), config.alpha_of(pair.module)
            yield from too_large(f"{quoted(pair.module)}: alpha", rank, alpha, use_rslora=config.use_rslora)


def _another_base(pairs: tuple[Pair, ...], base: Base) -> str | None:
    """How much of the adapter belongs to this base; None if all of it does."""
    own = [pair for pair in pairs if pair.module in base.modules and _is_as_wide(pair, base.modules[pair.module])]
    if len(own) == len(pairs):
        return None
    layers = f"it has modules in {_layers(pair.module for pair in pairs)} layers, the base in {_layers(base.modules)}"
    if own:
        return f"{len(own)} of the adapter's {len(pairs)} modules fit the base {quoted(base.name)} ({layers})"
    return (
        f"None of the adapter's {len(pairs)} modules fits the base {quoted(base.name)}:"
        f" it looks trained on another base ({layers})"
    )


def _layers(modules: Iterable[str]) -> int:
    return len({match[0] for module in modules if (match := _LAYER.match(module))})


def _is_as_wide(pair: Pair, module: Module) -> bool:
    """Whether it may have been trained on this layer, and is wrong in some other way at the most."""
    if any(len(entry.shape) != _MATRIX or math.prod(entry.shape) <= 1 for entry in (pair.a, pair.b)):
        return True
    return module.in_features in pair.a.shape and module.out_features in pair.b.shape


# --- shapes -----------------------------------------------------------------------------------------------------------


def _misshapen(pairs: Iterable[Pair], config: LoraConfig | None, base: Base) -> Iterator[str]:
    for pair in pairs:
        module = base.modules[pair.module]
        rank = config.rank_of(pair.module) if config else _own_rank(pair, module)
        yield from _wrong(pair.a, (rank, module.in_features), rank_axis=0)
        yield from _wrong(pair.b, (module.out_features, rank), rank_axis=1)


def _own_rank(pair: Pair, module: Module) -> int:
    """The rank by whichever half has the base's width on its other side."""
    if len(pair.a.shape) == _MATRIX and pair.a.shape[1] == module.in_features:
        return pair.a.shape[0]
    return pair.b.shape[1] if len(pair.b.shape) == _MATRIX else 1


def _wrong(entry: Entry, expected: tuple[int, int], *, rank_axis: int) -> Iterator[str]:
    if entry.shape != expected or 0 in expected:
        rank, why = expected[rank_axis], _why(entry.shape, expected, rank_axis)
        yield f"{quoted(entry.name)} is {list(entry.shape)} where rank {rank} and the base want {list(expected)}{why}"


def _why(shape: tuple[int, ...], expected: tuple[int, int], rank_axis: int) -> str:
    if len(shape) != _MATRIX:
        return f": it has {len(shape)} dimensions, and a matrix has 2"
    if 0 in shape:
        return ": it is empty"
    if shape == expected[::-1]:
        return ": it is transposed"
    if shape == (1, 1):
        return ": it is a single number"
    if shape[1 - rank_axis] == expected[1 - rank_axis]:
        return f": its rank is {shape[rank_axis]}, and r says {expected[rank_axis]}"
    return ""
