"""Small real things to test with: a base's module table, an adapter's folder, a checkpoint. NumPy only, no torch.

    base = make_base()                                       # or a real one, out of a registry
    folder = make_adapter_folder(tmp_path / "a", base, rank=8)
    registry.versions.publish(operator, "acme", "support", folder_members(folder), base=base.fingerprint)

To make a broken one, change what `adapter_config` and `adapter_tensors` return and hand it to `write_adapter`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters import Base, Module


@dataclass(frozen=True)
class Tensor:
    """A tensor as it lies in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    raw: bytes

    @classmethod
    def of(cls, values: NDArray[Any], dtype: str = "F32") -> "Tensor":
        """`values` in one of F32, F16, BF16 (cut off, not rounded)."""
        single = np.ascontiguousarray(values, dtype="<f4")
        if dtype == "BF16":
            stored: NDArray[Any] = (single.view("<u4") >> 16).astype("<u2")
        else:
            stored = single.astype({"F32": "<f4", "F16": "<f2"}[dtype])
        return cls(dtype, tuple(single.shape), stored.tobytes())


Tensors = dict[str, Tensor]


def make_base(name: str = "tiny", *, layers: int = 2, hidden: int = 32, inner: int = 64) -> Base:
    """A Llama-shaped base that has no weights: what the gate needs to know of one."""
    sizes = {
        "self_attn.q_proj": Module(hidden, hidden),
        "self_attn.k_proj": Module(hidden, hidden // 2),
        "self_attn.v_proj": Module(hidden, hidden // 2),
        "self_attn.o_proj": Module(hidden, hidden),
        "mlp.gate_proj": Module(hidden, inner),
        "mlp.up_proj": Module(hidden, inner),
        "mlp.down_proj": Module(inner, hidden),
    }
    return Base(
        name=name,
        fingerprint=f"sha256:{hashlib.sha256(f'{name} {layers} {hidden} {inner}'.encode()).hexdigest()}",
        path=f"/bases/{name}",
        modules={f"model.layers.{i}.{module}": size for i in range(layers) for module, size in sizes.items()},
        chat_template_digest=None,
        parameter_count=1000,
        size_bytes=2000,
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    )


def make_adapter_folder(
    path: Path,
    base: Base,
    rank: int = 8,
    alpha: float = 16,
    *,
    modules: Sequence[str] = ("q_proj", "v_proj"),
    dtype: str = "F32",
    seed: int = 0,
    strength: float = 0.02,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A folder as PEFT saves it, with a LoRA on every layer of `base` whose last name is in `modules`.

    `seed` decides the weights and so the digest; `strength` is the spread of B: 0 makes an adapter that changes
    nothing, 1 one that nobody overlooks. `config` is laid over adapter_config.json.
    """
    tensors = adapter_tensors(base, rank, modules=modules, dtype=dtype, seed=seed, strength=strength)
    return write_adapter(path, {**adapter_config(rank, alpha, modules=modules), **(config or {})}, tensors)


def adapter_config(
    rank: int = 8, alpha: float = 16, *, modules: Sequence[str] = ("q_proj", "v_proj")
) -> dict[str, Any]:
    """The keys of PEFT's adapter_config.json that matter, and some that it always writes."""
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "somewhere/on-the-trainers-machine",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.05,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "target_modules": list(modules),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def adapter_tensors(
    base: Base,
    rank: int = 8,
    *,
    modules: Sequence[str] = ("q_proj", "v_proj"),
    dtype: str = "F32",
    seed: int = 0,
    strength: float = 0.02,
) -> Tensors:
    """Tensors by name, for every layer of `base` whose last name is in `modules`."""
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    for module, size in base.modules.items():
        if module.rpartition(".")[2] in modules:
            a = random.normal(0, 0.1, (rank, size.in_features))
            b = random.normal(0, strength, (size.out_features, rank))
            tensors[f"base_model.model.{module}.lora_A.weight"] = Tensor.of(a, dtype)
            tensors[f"base_model.model.{module}.lora_B.weight"] = Tensor.of(b, dtype)
    return tensors


def write_adapter(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """The two files, and the README.md that PEFT adds."""
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2))
    (path / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
    (path / "README.md").write_text("# My adapter\n")
    return path


def safetensors_bytes(tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None) -> bytes:
    """A safetensors file. `header` is laid over the one that would be right."""
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + len(tensor.raw)
        described[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    raw = json.dumps({**described, **(header or {})}).encode()
    return len(raw).to_bytes(8, "little") + raw + b"".join(tensor.raw for tensor in tensors.values())


def make_base_folder(path: Path, *, seed: int = 0, shards: int = 1, template: str | None = "{{ messages }}") -> Path:
    """A checkpoint with two small tensors, a tokenizer and a chat template: what `fingerprint_base` reads."""
    path.mkdir(parents=True)
    random = np.random.default_rng(seed)
    tensors = {name: Tensor.of(random.normal(size=(4, 4)), "BF16") for name in ("model.embed.weight", "model.q.weight")}
    names = sorted(tensors)
    for shard in range(shards):
        part = {name: tensors[name] for name in names[shard::shards]}
        (path / f"model-{shard}.safetensors").write_bytes(safetensors_bytes(part))
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": 2, "content": "<|end|>", "special": True, "lstrip": False}],
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]},
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return path
