"""Both files written anew from what the gate understood. Invariant: equal adapters for one base give equal bytes.

Nothing of the upload is copied that was not read and judged: no metadata, no unknown key, no spare byte.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adapters.gate.config import LoraConfig
from adapters.gate.modules import Pair
from adapters.safetensors import DTYPE_BITS, Entry, write_header
from adapters.values import Base


def write_config(path: Path, config: LoraConfig, pairs: Iterable[Pair], base: Base) -> None:
    """adapter_config.json with what PEFT and vLLM need to read the weights as they were meant. `config` is settled.

    Patterns stay patterns, which both read natively: no weight is ever multiplied, and so none is rounded.
    """
    stated: dict[str, Any] = {
        "base_model_name_or_path": base.fingerprint,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": _plain(config.alpha),
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": _targets(pairs, base),
        "task_type": "CAUSAL_LM",
        "use_rslora": config.use_rslora,
    }
    if config.ranks:
        stated["rank_pattern"] = {f"^{module}": rank for module, rank in config.ranks.items()}
    if config.alphas:
        stated["alpha_pattern"] = {f"^{module}": _plain(alpha) for module, alpha in config.alphas.items()}
    path.write_text(json.dumps(stated, indent=2, sort_keys=True) + "\n", encoding="ascii")


def write_weights(path: Path, source: Path, pairs: Iterable[Pair]) -> tuple[Entry, ...]:
    """adapter_model.safetensors with the pairs' tensors out of `source`, which are returned in their new order."""
    tensors = [tensor for pair in pairs for tensor in (pair.a, pair.b)]
    # The widest first, so that each tensor lies aligned to its own width.
    ordered = tuple(sorted(tensors, key=lambda tensor: (-DTYPE_BITS[tensor.dtype], tensor.name)))
    with source.open("rb") as uploaded, path.open("xb") as file:
        write_header(file, ordered)
        for tensor in ordered:
            file.writelines(tensor.read(uploaded))
    return ordered


def _plain(alpha: float) -> float:
    return int(alpha) if alpha.is_integer() else alpha


def _targets(pairs: Iterable[Pair], base: Base) -> list[str]:
    """The modules' last names if that says exactly which ones they are, else their full paths."""
    modules = {pair.module for pair in pairs}
    ours = Counter(_last_name(module) for module in modules)
    of_base = Counter(_last_name(module) for module in base.modules)
    is_exact = all(of_base[name] == count for name, count in ours.items())
    return sorted(ours if is_exact else modules)


def _last_name(module: str) -> str:
    return module.rpartition(".")[2]
