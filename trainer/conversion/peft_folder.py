"""An adapter's folder as PEFT saves it: its modules, and each one's tensors and scale, checked against the base.

Knows no arithmetic of any method.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from adapters import parse_strictly
from trainer.conversion.peft_config import WEIGHTS_FILE, Method, PeftConfig
from trainer.conversion.tensor_files import TensorFiles
from trainer.errors import AdapterError, BaseError

Value = TypeVar("Value")

TENSOR = re.compile(
    r"base_model\.model\.([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\.(lora_(?:A|B|E|magnitude_vector))(?:\.weight)?"
)
PARTS = {
    Method.LORA: frozenset({"lora_A", "lora_B"}),
    Method.DORA: frozenset({"lora_A", "lora_B", "lora_magnitude_vector"}),
    Method.ADALORA: frozenset({"lora_A", "lora_B", "lora_E"}),
    Method.RESIDUAL: frozenset({"lora_A", "lora_B"}),
}
ADALORA_EPSILON = 1e-5
"""PEFT adds it to the rank that AdaLoRA divides by (peft/tuners/adalora/layer.py, SVDLinear)."""


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """An adapter whose tensors are all there and fit the base."""

    path: Path
    config: PeftConfig
    files: TensorFiles
    names: Mapping[str, Mapping[str, str]]
    """module → its part (lora_A, …) → the tensor's name."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Their full paths in the base, sorted."""
        return tuple(sorted(self.names))

    def rank(self, module: str) -> int:
        """How many rows the module's A has."""
        return self.files.shape(self.names[module]["lora_A"])[0]

    def scale(self, module: str) -> float:
        """What PEFT multiplies B·A with."""
        config = self.config
        if config.method is Method.ADALORA:
            return config.lora_alpha / (config.init_r + ADALORA_EPSILON)
        alpha = _of_pattern(config.alpha_pattern or {}, module, config.lora_alpha)
        return alpha / (math.sqrt(self.rank(module)) if config.use_rslora else self.rank(module))

    def read(self, module: str) -> dict[str, torch.Tensor]:
        """The module's tensors by part, in float32."""
        return {part: self.files.read(name) for part, name in self.names[module].items()}


def open_base(folder: Path) -> TensorFiles:
    """The base's weights. Raises BaseError."""
    files = checkpoint_files(folder)
    if not files:
        raise BaseError(f"{folder}: holds no .safetensors file: give a base's checkpoint folder with --base.")
    return TensorFiles(files, error=BaseError)


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights: those of its index, if it has one. Raises BaseError."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        stated = parse_strictly(index.read_bytes())
        names = sorted(set(stated["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseError(f"{index}: can't be read as an index of shards.") from error
    strange = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if strange:
        raise BaseError(f"{index}: names a file that is not beside it.")
    return [folder / name for name in names]


def open_adapter(folder: Path, config: PeftConfig, base: TensorFiles) -> PeftFolder:
    """The adapter in `folder`, of which no weights are read yet.

    Raises:
        AdapterError: a tensor is missing, misnamed, or not in the shape that config and base want.
    """
    files = TensorFiles([folder / WEIGHTS_FILE], error=AdapterError)
    names: dict[str, dict[str, str]] = {}
    wanted = PARTS[config.method]
    for name in sorted(files.names):
        if config.method is Method.ADALORA and name.endswith(".ranknum"):
            continue  # earlier PEFTs wrote it; it is init_r
        match = TENSOR.fullmatch(name)
        if match is None or match[2] not in wanted:
            raise AdapterError(f"{folder}: {name} is no tensor of a {config.method} adapter's linear layers.")
        names.setdefault(match[1], {})[match[2]] = name
    if not names:
        raise AdapterError(f"{folder}: {WEIGHTS_FILE} holds no tensors.")
    adapter = PeftFolder(folder, _without_strangers(config, names), files, names)
    _require_fit(adapter, base, wanted)
    return adapter


def require_same_modules(initial: PeftFolder, adapter: PeftFolder) -> None:
    """Raise AdapterError unless `initial` can be what `adapter`'s training began with."""
    if initial.config.method is not Method.LORA:
        raise AdapterError(
            f"{initial.path}: the initial adapter must be saved as plain LoRA, with init_lora_weights true; "
            "PEFT would take its part out of the base a second time."
        )
    if initial.modules != adapter.modules:
        raise AdapterError(f"{initial.path}: the initial adapter has other modules than {adapter.path}.")
    for module in adapter.modules:
        if initial.rank(module) != adapter.rank(module) or initial.scale(module) != adapter.scale(module):
            raise AdapterError(f"{initial.path}: at {module}, rank or alpha are not those of {adapter.path}.")


def _require_fit(adapter: PeftFolder, base: TensorFiles, wanted: Iterable[str]) -> None:
    for module, parts in adapter.names.items():
        missing = sorted(set(wanted) - parts.keys())
        if missing:
            raise AdapterError(f"{adapter.path}: {module} has no {missing[0]}.")
        weight = f"{module}.weight"
        if weight not in base.names:
            raise AdapterError(f"{adapter.path}: the base holds no {weight}: give the adapter's own base with --base.")
        _require_shapes(adapter, module, base.shape(weight))


def _require_shapes(adapter: PeftFolder, module: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 2:  # noqa: PLR2004  — a matrix
        raise AdapterError(f"{adapter.path}: {module} is no linear layer of the base.")
    rank = _stated_rank(adapter.config, module)
    expected = {
        "lora_A": (rank, shape[1]),
        "lora_B": (shape[0], rank),
        "lora_E": (rank, 1),
        "lora_magnitude_vector": (shape[0],),
    }
    for part, name in adapter.names[module].items():
        found = adapter.files.shape(name)
        if found != expected[part]:
            raise AdapterError(
                f"{adapter.path}: {name} is {list(found)} where the config's rank and the base want "
                f"{list(expected[part])}: is this the base that it was trained on?"
            )


def _stated_rank(config: PeftConfig, module: str) -> int:
    pattern = config.rank_pattern or {}
    if config.method is Method.ADALORA:
        mask = pattern.get(f"{module}.lora_E")
        return sum(mask) if isinstance(mask, list) else config.init_r
    rank = _of_pattern(pattern, module, config.r)
    if isinstance(rank, list):
        raise AdapterError("rank_pattern holds masks, which are AdaLoRA's, but peft_type is LORA.")
    return rank


def _of_pattern(pattern: Mapping[str, Value], module: str, default: Value) -> Value:
    """As PEFT reads rank_pattern and alpha_pattern: the first key that the module's path ends in."""
    own = _names_of(module)
    return next((value for key, value in pattern.items() if key in own), default)


def _without_strangers(config: PeftConfig, modules: Iterable[str]) -> PeftConfig:
    """The patterns without keys that name none of `modules`: PEFT tries each key on each module."""
    if config.method is Method.ADALORA:
        return config  # its keys are tensors, which are looked up
    known = frozenset(name for module in modules for name in _names_of(module))
    patterns = {"rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern}
    kept = {
        which: {key: value for key, value in (pattern or {}).items() if key in known}
        for which, pattern in patterns.items()
    }
    return config.model_copy(update=kept)


def _names_of(module: str) -> frozenset[str]:
    """What a pattern may call the module: any end of its path, or `^` and all of it."""
    steps = module.split(".")
    return frozenset({f"^{module}", *(".".join(steps[start:]) for start in range(len(steps)))})
