"""Small real things to test with: a base's module table, an adapter's folder, a checkpoint. NumPy only, no torch.

    base = make_base()                                       # or a real one, out of a registry
    folder = make_adapter_folder(tmp_path / "a", base, rank=8)
    registry.versions.publish(operator, "acme", "support", folder_members(folder), base=base.fingerprint)

To make a broken one, change what `adapter_config` and `adapter_tensors` return and hand it to `write_adapter`. Whole
models likewise, with the gate's view of the base that they were made from:

    base = make_base_of(make_model_folder(tmp_path / "base"))
    folder = make_model_folder(tmp_path / "full", seed=1)    # `model_documents`, `model_tensors` and `write_model`
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

from adapters import Base, Module, Registry, fingerprint_base


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


def folder_of(registry: Registry, digest: str) -> Path:
    """Where a version's files lie, once nobody holds them any more."""
    with registry.hold(digest) as folder:
        return folder


def make_model_folder(
    path: Path,
    *,
    seed: int = 0,
    dtype: str = "F32",
    shards: int = 1,
    vocabulary: int = 8,
    is_tied: bool = False,
    template: str | None = "{{ messages }}",
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A whole Llama-shaped checkpoint. Without `seed`, all have the same weights; `config` is laid over config.json."""
    documents = model_documents(vocabulary=vocabulary, is_tied=is_tied, template=template)
    documents["config.json"] |= config or {}
    tensors = model_tensors(seed=seed, dtype=dtype, vocabulary=vocabulary, is_tied=is_tied)
    return write_model(path, documents, tensors, shards=shards, template=template)


def make_base_of(folder: Path, name: str = "tiny") -> Base:
    """A checkpoint as a base that the registry knows, without its table of modules."""
    identity = fingerprint_base(folder)
    return Base(
        name=name,
        fingerprint=identity.fingerprint,
        path=str(folder),
        modules={},
        chat_template_digest=identity.chat_template_digest,
        parameter_count=identity.parameter_count,
        size_bytes=identity.size_bytes,
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        tensors=identity.tensors,
        config=identity.config,
    )


def model_documents(
    *, vocabulary: int = 8, is_tied: bool = False, template: str | None = "{{ messages }}"
) -> dict[str, dict[str, Any]]:
    """A checkpoint's JSON files by name, but for an index."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 0,
        "dtype": "float32",
        "eos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": 8,
        "intermediate_size": 16,
        "max_position_embeddings": 64,
        "model_type": "llama",
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": is_tied,
        "transformers_version": "5.19.0",
        "use_cache": True,
        "vocab_size": vocabulary,
    }
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 0, "content": "<s>", **special}, {"id": 1, "content": "</s>", **special}],
        "normalizer": {"type": "Prepend", "prepend": "_"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4},
            "merges": [["a", "b"]],
        },
    }
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    if template is not None:
        tokenizer_config["chat_template"] = template
    return {
        "config.json": config,
        "generation_config.json": {"eos_token_id": [1], "temperature": 0.7, "transformers_version": "5.19.0"},
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": tokenizer_config,
    }


def model_tensors(*, seed: int = 0, dtype: str = "F32", vocabulary: int = 8, is_tied: bool = False) -> Tensors:
    """The tensors that fit the config of `model_documents`."""
    layer = "model.layers.0"
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, 8),
        f"{layer}.self_attn.q_proj.weight": (8, 8),
        f"{layer}.self_attn.k_proj.weight": (4, 8),
        f"{layer}.self_attn.v_proj.weight": (4, 8),
        f"{layer}.self_attn.o_proj.weight": (8, 8),
        f"{layer}.mlp.gate_proj.weight": (16, 8),
        f"{layer}.mlp.up_proj.weight": (16, 8),
        f"{layer}.mlp.down_proj.weight": (8, 16),
        f"{layer}.input_layernorm.weight": (8,),
        f"{layer}.post_attention_layernorm.weight": (8,),
        "model.norm.weight": (8,),
        "lm_head.weight": (vocabulary, 8),
    }
    if is_tied:
        del shapes["lm_head.weight"]
    random = np.random.default_rng(seed)
    return {name: Tensor.of(random.normal(0, 0.1, shape), dtype) for name, shape in shapes.items()}


def write_model(
    path: Path,
    documents: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, Tensor],
    *,
    shards: int = 1,
    template: str | None = None,
) -> Path:
    """A checkpoint's folder; `template` is written as a file of its own, too."""
    path.mkdir(parents=True)
    for name, document in documents.items():
        (path / name).write_text(json.dumps(document))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    names = list(tensors)
    files = [f"model-{n:05}-of-{shards:05}.safetensors" for n in range(1, shards + 1)]
    if shards == 1:
        files = ["model.safetensors"]
    else:
        index = {"metadata": {}, "weight_map": {name: files[n % shards] for n, name in enumerate(names)}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    for n, file in enumerate(files):
        part = {name: tensors[name] for name in names[n::shards]}
        (path / file).write_bytes(safetensors_bytes(part))
    return path
