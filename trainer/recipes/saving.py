"""Writes what was trained as files: an adapter as PEFT does, or a checkpoint that is the base but for its weights.

Reads, never changes, the model in memory. In a process of several all must call, since a sharded tensor is put together
by all of them; the first one writes.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, PeftType, get_peft_model_state_dict
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from trainer.errors import RunError

DOCUMENTS = frozenset({".json", ".jinja", ".txt", ".model"})
"""Suffixes of a checkpoint's files that are not weights, and no code."""
INDEX = "model.safetensors.index.json"
AT_THE_START = 1e-5
"""PiSSA's AAᵀ and BᵀB are equal when it begins; if they still are, but for rounding, nothing was learned."""


def save_adapter(adapter: PeftModel, folder: Path, *, base_name: str, writes: bool = True) -> None:
    """Write adapter_config.json and adapter_model.safetensors.

    Plain LoRA in bfloat16, which is what servers compute in; what is yet to be converted in float32, as it was trained,
    since PiSSA's change is a small difference of two large products.

    Raises:
        RunError: a weight is not finite, or nothing was learned. Nothing was written.
    """
    config = adapter.peft_config["default"]
    # Without save_embedding_layers PEFT may add the embeddings, or ask the hub about the base's.
    found = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    tensors = {name: _whole(tensor) for name, tensor in found.items()}
    _require_finite(tensors)
    _require_learned(tensors, config)
    tensors, pattern = _without_empty_ranks(tensors)
    if not writes:
        return
    dtype = torch.bfloat16 if _is_plain(config) else torch.float32
    stated = config.to_dict() | {
        "base_model_name_or_path": base_name,  # PEFT would write this machine's path
        "inference_mode": True,
        "target_modules": sorted(config.target_modules),
        "rank_pattern": pattern,
    }
    write_adapter(folder, {name: tensor.to("cpu", dtype).contiguous() for name, tensor in tensors.items()}, stated)


def write_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """An adapter's two files, as PEFT names them."""
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    stated = json.dumps(dict(config), indent=2, sort_keys=True, default=str)
    (folder / "adapter_config.json").write_text(stated + "\n")


def save_model(model: Any, folder: Path, *, base_folder: Path, writes: bool = True) -> None:  # noqa: ANN401  — transformers'
    """Write a whole checkpoint in bfloat16; all but the weights is the base's own, byte for byte.

    Training must not change how a prompt is made or where an answer ends; libraries write tokenizers in other words
    than they read, and trainers set ids in configs. config.json alone says another dtype.

    Raises:
        RunError: a weight is not finite. Nothing was written.
    """
    tensors = _in_bfloat16({name: _whole(tensor) for name, tensor in model.state_dict().items()})
    _require_finite(tensors)
    if not writes:
        return
    model.save_pretrained(folder, state_dict=tensors)
    for document in sorted(base_folder.iterdir()):
        if document.suffix in DOCUMENTS and document.name != INDEX:
            shutil.copyfile(document, folder / document.name)
    config = json.loads((folder / "config.json").read_bytes())
    config.pop("torch_dtype", None)  # as earlier versions of transformers call it
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}, indent=2) + "\n")


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which this process may hold a part."""
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return tensor


def _in_bfloat16(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies, in which tensors that were one (a tied head) still are."""
    cast: dict[tuple[int, torch.Size], torch.Tensor] = {}
    shared = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in cast:
            cast[key] = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        shared[name] = cast[key]
    return shared


def _without_empty_ranks(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, list[bool]]]:
    """AdaLoRA's tensors without the ranks that it took away, and which those are, as PEFT's rank_pattern says it."""
    kept, pattern = dict(tensors), {}
    for name, entries in tensors.items():
        if not name.endswith("lora_E"):
            continue
        module = name.removesuffix("lora_E")
        stays = entries.flatten() != 0
        pattern[name.removeprefix("base_model.model.")] = stays.tolist()
        kept[name] = entries[stays]
        kept[f"{module}lora_A"] = tensors[f"{module}lora_A"][stays]
        kept[f"{module}lora_B"] = tensors[f"{module}lora_B"][:, stays]
    return kept, pattern


def _is_plain(config: Any) -> bool:  # noqa: ANN401  — PeftConfig
    """Whether servers load it as it is."""
    return config.peft_type == PeftType.LORA and config.init_lora_weights is True and not config.use_dora


def _require_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    broken = next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None)
    if broken is not None:
        raise RunError(
            f"{broken} is not finite after the training, so nothing was saved: look where the loss went wrong in "
            "metrics.jsonl, and take a lower learning_rate or max_grad_norm."
        )


def _require_learned(tensors: Mapping[str, torch.Tensor], config: Any) -> None:  # noqa: ANN401  — PeftConfig
    if config.init_lora_weights == "pissa":
        is_dead = all(_is_at_start(a, b) for a, b in _pairs(tensors))
    else:
        factor = "lora_E" if config.peft_type == PeftType.ADALORA else "lora_B"  # zero when it begins
        is_dead = not any(bool(tensor.any()) for name, tensor in tensors.items() if factor in name)
    if is_dead:
        raise RunError(
            "The adapter is as it was before the training, so nothing was saved: no gradient reached it. Look at "
            "learning_rate, and whether any token is supervised (data.json)."
        )


def _pairs(tensors: Mapping[str, torch.Tensor]) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    return ((tensor, tensors[name.replace("lora_A", "lora_B")]) for name, tensor in tensors.items() if "lora_A" in name)


def _is_at_start(a: torch.Tensor, b: torch.Tensor) -> bool:
    rows, columns = a.float() @ a.float().T, b.float().T @ b.float()
    return float(torch.linalg.norm(rows - columns)) <= AT_THE_START * float(torch.linalg.norm(rows))
