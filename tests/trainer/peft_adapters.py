"""Adapters as PEFT makes and saves them, trained a little, and run on their base."""

from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.tiny_model import VOCABULARY_SIZE

TARGETS = ["q_proj", "v_proj", "down_proj"]
TOKENS = torch.arange(5, VOCABULARY_SIZE, 9)[None]


def make_peft_adapter(
    base: Path, folder: Path, *, initial: Path | None = None, base_name: str = "tiny", seed: int = 1, **keys: Any
) -> Path:
    """Train an adapter on the base a little, and save it in `folder`. `initial`: as it was before training, too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(base_model(base), config_of(keys))
        if initial is not None:
            keep_initial(model, initial)
        train(model)
    model.peft_config["default"].base_model_name_or_path = base_name
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def base_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def config_of(keys: dict[str, Any]) -> LoraConfig:
    keys = {"r": 8, "lora_alpha": 16, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | keys
    return AdaLoraConfig(**keys) if keys.pop("adalora", False) else LoraConfig(**keys)


def keep_initial(model: Any, folder: Path) -> None:
    """As PEFT's documentation says to."""
    config = model.peft_config["default"]
    start, config.init_lora_weights = config.init_lora_weights, True
    model.save_pretrained(folder, save_embedding_layers=False)
    config.init_lora_weights = start


def train(model: Any) -> None:
    """Three steps of gradient descent, large enough to be seen."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_E" in name:
                parameter.normal_(0, 0.5)
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=0.02)
    for step in range(1, 4):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        if isinstance(model.peft_config["default"], AdaLoraConfig):
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad()


def lost(base: Path, original: Path, converted: Path) -> float:
    """Which share of what the original does to the logits the converted one does otherwise."""
    plain, before, after = (logits_of(base, folder) for folder in (None, original, converted))
    return float((before - after).norm() / (before - plain).norm())


def logits_of(base: Path, adapter: Path | None) -> torch.Tensor:
    model = base_model(base)
    adapted = model if adapter is None else PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits: torch.Tensor = adapted.eval()(input_ids=TOKENS).logits
    return logits


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(folder / "adapter_model.safetensors")
    return tensors
