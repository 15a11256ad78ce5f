"""The tensors against the base: each pair belongs to a linear layer that the base has, in the shapes that follow.

An engine that loads first and looks later leaves out what it does not know, and copies what is too small into a corner.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from adapters.gate.config import LoraConfig
from adapters.names import quoted
from adapters.refusals import Refusal, refuse_any
from adapters.safetensors import Entry
from adapters.values import Base

_TENSOR: Final = re.compile(r"base_model\.model\.([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\.lora_([AB])\.weight")


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


def match_modules(tensors: Iterable[Entry], config: LoraConfig, base: Base) -> tuple[Pair, ...]:
    """The pairs, by module.

    Raises:
        RefusedError: `invalid_tensor_name`, `missing_pair`, `unknown_module` or `shape_mismatch`.
    """
    halves: dict[str, dict[str, Entry]] = {}
    misnamed: list[str] = []
    for tensor in tensors:
        if match := _TENSOR.fullmatch(tensor.name):
            halves.setdefault(match[1], {})[match[2]] = tensor
        else:
            misnamed.append(
                f"{quoted(tensor.name)} is not called base_model.model.<module>.lora_A.weight or lora_B.weight"
            )
    refuse_any(Refusal.INVALID_TENSOR_NAME, misnamed)
    refuse_any(Refusal.MISSING_PAIR, _unpaired(halves))
    pairs = tuple(Pair(module, pair["A"], pair["B"]) for module, pair in sorted(halves.items()))
    refuse_any(Refusal.UNKNOWN_MODULE, _unknown(pairs, config, base))
    refuse_any(Refusal.SHAPE_MISMATCH, _misshapen(pairs, config.rank, base))
    return pairs


def _unpaired(halves: dict[str, dict[str, Entry]]) -> Iterator[str]:
    if not halves:
        yield "There is no tensor in it"
    for module, pair in halves.items():
        for side in {"A", "B"} - pair.keys():
            yield f"{quoted(module)} has no lora_{side}"


def _unknown(pairs: Iterable[Pair], config: LoraConfig, base: Base) -> Iterator[str]:
    for pair in pairs:
        if pair.module not in base.modules:
            yield f"the base {quoted(base.name)} has no linear layer {quoted(pair.module)}"
        elif not _is_targeted(pair.module, config.target_modules):
            yield f"{quoted(pair.module)} has tensors, but target_modules does not name it"


def _is_targeted(module: str, targets: frozenset[str]) -> bool:
    """As PEFT matches plain names: the full path, or the end of it from a dot on."""
    names = module.split(".")
    return any(".".join(names[start:]) in targets for start in range(len(names)))


def _misshapen(pairs: Iterable[Pair], rank: int, base: Base) -> Iterator[str]:
    for pair in pairs:
        module = base.modules[pair.module]
        expected = {pair.a: (rank, module.in_features), pair.b: (module.out_features, rank)}
        for entry, shape in expected.items():
            if entry.shape != shape:
                yield f"{quoted(entry.name)} is {list(entry.shape)} where rank and base want {list(shape)}"
