"""Tiny random checkpoints of several architectures, and adapters for them as PEFT itself saves them.

transformers, torch and peft are imported where they are used: naming an architecture costs nothing.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters import Base
from tests.builders import make_base

ARCHITECTURES = {
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "gemma": "GemmaConfig",
    "gemma2": "Gemma2Config",
    "gemma3": "Gemma3TextConfig",
    "phi": "PhiConfig",
    "phi3": "Phi3Config",
}
"""A name → transformers' class. phi has biases and names of its own; phi3 has q, k and v in one layer."""


def make_checkpoint(folder: Path, architecture: str) -> Path:
    """A whole checkpoint: the tokenizer and template of the tiny Llama, and this architecture's own weights."""
    import torch
    import transformers

    from tests.tiny_model import VOCABULARY_SIZE, make_tiny_checkpoint

    make_tiny_checkpoint(folder)
    has_head_dim = architecture not in {"qwen2", "phi", "phi3"}
    config = getattr(transformers, ARCHITECTURES[architecture])(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=64 if has_head_dim else 128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        **({"head_dim": 32} if has_head_dim else {}),  # vLLM's CPU attention takes no less
        **({"query_pre_attn_scalar": 32} if architecture in {"gemma2", "gemma3"} else {}),
        **({"original_max_position_embeddings": 512} if architecture == "phi3" else {}),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


def described(folder: Path) -> Base:
    """The checkpoint as `lorikeet base` enters it in the registry."""
    from trainer.checkpoint import module_table

    return replace(make_base(folder.name), path=str(folder), modules=module_table(folder))


def make_peft_adapter(checkpoint: Path, folder: Path, *, strength: float = 0.1, **options: Any) -> Path:
    """An adapter that PEFT made and saved: `options` are LoraConfig's, or with `config` a whole config. B is random."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = options.pop("config", None) or LoraConfig(**{"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM"} | options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = get_peft_model(load_model(checkpoint), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=strength)
    model.save_pretrained(folder)
    return folder


def load_model(checkpoint: Path) -> Any:
    """The model in float32, with the plainest attention that there is."""
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )


def last_names(base: Base) -> list[str]:
    """What target_modules says for all of the base's linear layers."""
    return sorted({module.rpartition(".")[2] for module in base.modules})
