"""An adapter of chance: what a benchmark asks when the words do not matter."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from adapters import Base

SPREAD = 0.01


def write_random_adapter(folder: Path, base: Base, *, rank: int, seed: int) -> Path:
    """A LoRA on every linear layer of `base`, as PEFT saves it, in a new folder."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    tensors = {
        f"base_model.model.{name}.lora_{matrix}.weight": random.normal(0, SPREAD, shape).astype(np.float32)
        for name, module in base.modules.items()
        for matrix, shape in (("A", (rank, module.in_features)), ("B", (module.out_features, rank)))
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({name.rpartition(".")[2] for name in base.modules})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"bias": "none"}))
    return folder
