"""config.json against the base's: the same architecture, and no code.

What is stored is the base's own config.json. An upload may change the vocabulary's size, the dtype, the ids of the
tokens that begin, end and pad, whether the head is tied, and how the weights are quantised. Libraries write the same
thing in several ways, so what is compared is what the keys mean.
"""

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from adapters.fingerprint import KEPT
from adapters.gate.checkpoint.quantization import KEY, Quantization, read_quantization
from adapters.limits import MAX_VOCABULARY
from adapters.names import quoted
from adapters.refusals import Faults, Refusal
from adapters.values import QUANTISED_KEYS, Base

CODE: Final = frozenset({"auto_map", "custom_pipelines", "trust_remote_code"})
TOKEN_IDS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")

_DTYPES: Final = ("dtype", "torch_dtype")
_FLOATS: Final[Mapping[str, str]] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TIED: Final = "tie_word_embeddings"
_OF_A_MACHINE: Final = frozenset({"_name_or_path", "_model_name_or_path"})
_TAKEN: Final = frozenset({"vocab_size", *_DTYPES, *TOKEN_IDS, _TIED, KEY})
"""What an upload may say otherwise than its base."""
_MEANINGLESS: Final = frozenset(
    {
        *("transformers_version", "unsloth_version", "unsloth_fixed", *_OF_A_MACHINE),
        *("use_cache", "initializer_range", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop"),
        *("attn_pdrop", "embedding_dropout", "resid_dropout", "tokenizer_class", "is_llama_config", "unk_token_id"),
        *("transformers.js_config", "task_specific_params", "problem_type", "id2label", "label2id", "model_max_length"),
        *("output_attentions", "output_hidden_states", "return_dict", "_attn_implementation_autoset", KEPT),
        *("_attn_implementation", "attn_implementation", "chunk_size_feed_forward", "torchscript", "rope_interleaved"),
    }
)
"""Of no effect on what an engine computes, or of training alone. The base's stand."""
_MOST_IDS: Final = 64


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """What an upload's config.json means."""

    vocabulary: int
    """How many tokens it has."""
    base_vocabulary: int
    is_tied: bool
    """Whether the head is the embedding."""
    stated: Mapping[str, Any]
    """What it says for itself, of the keys that it may."""
    quantization: Quantization | None
    """None: its weights are plain."""

    def allows_ids(self, value: object) -> bool:
        """Whether it is null, one of the vocabulary's ids, or a list of them."""
        ids = value if isinstance(value, list) else [value]
        if value is None:
            return True
        return 0 < len(ids) <= _MOST_IDS and all(type(each) is int and 0 <= each < self.vocabulary for each in ids)

    def written(self, base: Base, sizes: Mapping[str, int]) -> dict[str, Any]:
        """The config.json to store; `sizes` is how many bytes there are of each of the tensors' dtypes."""
        of_base = {key: value for key, value in base.config.items() if key not in CODE | _OF_A_MACHINE | {KEPT}}
        dtype_key = next((key for key in _DTYPES if key in of_base), _DTYPES[0])
        dtype = next((self.stated[key] for key in _DTYPES if self.stated.get(key) in _FLOATS.values()), None)
        widest = max(sizes.keys() & _FLOATS.keys(), key=lambda name: (sizes[name], name))
        own = {key: value for key, value in self.stated.items() if key not in {*_DTYPES, KEY}}
        how = {KEY: self.quantization.written()} if self.quantization else {}
        return {**of_base, **own, **how, dtype_key: dtype or _FLOATS[widest]}


def vocabulary_of(config: Mapping[str, Any]) -> int | None:
    """How many tokens a base's config.json says that there are; None if it does not."""
    for place in (config, config.get("text_config")):
        if isinstance(place, dict) and _is_size(place.get("vocab_size")):
            return int(place["vocab_size"])
    return None


def read_config(stated: Mapping[str, Any], base: Base, *, faults: Faults) -> CheckpointConfig | None:
    """What it means; None if its vocabulary's size, or how its weights are quantised, can't be told.

    Adds `invalid_config`, `unsupported_config` and `config_mismatch` to `faults`.
    """
    faults.add(Refusal.UNSUPPORTED_CONFIG, _programs({key: stated[key] for key in stated.keys() - {KEY}}))
    faults.add(Refusal.CONFIG_MISMATCH, _differences(_meaning(stated), _meaning(base.config)))
    of_base = vocabulary_of(base.config)
    is_resizable = "vocab_size" in base.config
    vocabulary = stated.get("vocab_size", of_base) if is_resizable else of_base
    if of_base is None or not _is_size(vocabulary):
        most = f"a whole number of at least 1 and at most {MAX_VOCABULARY}"
        faults.add(Refusal.INVALID_CONFIG, [f"in config.json, 'vocab_size' must be {most}"])
        return None
    tied = stated.get(_TIED, base.config.get(_TIED, "lm_head.weight" not in base.tensors))
    if not isinstance(tied, bool):
        faults.add(Refusal.INVALID_CONFIG, [f"in config.json, '{_TIED}' must be true or false"])
    quantization = read_quantization(stated.get(KEY), base, faults=faults)
    if quantization is None and stated.get(KEY):
        return None
    config = CheckpointConfig(
        quantization=quantization,
        vocabulary=vocabulary,
        base_vocabulary=of_base,
        is_tied=tied is True,
        stated={key: stated[key] for key in _TAKEN & stated.keys() if key != "vocab_size" or is_resizable},
    )
    faults.add(
        Refusal.INVALID_CONFIG,
        (
            f"in config.json, '{key}' must be null or ids below the vocab_size of {vocabulary}"
            for key in TOKEN_IDS
            if not config.allows_ids(stated.get(key)) and stated.get(key) != base.config.get(key)
        ),
    )
    return config


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_VOCABULARY


def _programs(stated: Mapping[str, Any]) -> Iterator[str]:
    """What would bring code, or other weights than the tensors', however deep it lies."""
    remaining: list[object] = [stated]
    while remaining:
        value = remaining.pop()
        if isinstance(value, list):
            remaining += value
        elif isinstance(value, dict):
            remaining += value.values()
            for key in sorted(value.keys() & (CODE | QUANTISED_KEYS)):
                if not _is_nothing(value[key]):
                    what = "code of its own" if key in CODE else "weights quantised so"
                    yield f"config.json has {quoted(key)}: {what} can't be uploaded"


# --- what the keys mean -----------------------------------------------------------------------------------------------


def _differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(found.keys() | expected.keys()):
        if found.get(key) != expected.get(key):
            theirs, ours = (_shown(side.get(key)) for side in (found, expected))
            yield f"in config.json, {quoted(key)} is {theirs} where the base has {ours}"


def _meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that decide what is computed, without those that say what holds anyhow."""
    meant = {
        key: value
        for key, value in config.items()
        if key not in _TAKEN | _MEANINGLESS | _ROPE and not _is_nothing(value)
    }
    meant |= {f"rope {key}": value for key, value in _rope(config).items()}
    return {key: value for key, value in meant.items() if not _holds_anyhow(key, value, config)}


_ROPE: Final = frozenset({"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"})


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers 5 has in rope_parameters, and older ones in keys of their own."""
    gathered = {key: config.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    for key in ("rope_scaling", "rope_parameters"):
        stated = config.get(key)
        gathered |= stated if isinstance(stated, dict) else {key: stated}
    if "type" in gathered:
        gathered.setdefault("rope_type", gathered.pop("type"))
    anyhow = {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 1}
    return {key: value for key, value in gathered.items() if not _is_nothing(value) and value != anyhow.get(key)}


def _holds_anyhow(key: str, value: object, config: Mapping[str, Any]) -> bool:
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    match key:
        case "pretraining_tp":
            return value == 1
        case "num_key_value_heads":
            return value == heads
        case "head_dim":
            return type(heads) is int and type(hidden) is int and heads > 0 and value == hidden // heads
        case "layer_types":
            return isinstance(value, list) and all(each == "full_attention" for each in value)
        case "sliding_window" | "max_window_layers":
            return "max_window_layers" in config and _is_nothing(config.get("use_sliding_window"))
    return False


def _is_nothing(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})


def _shown(value: object) -> str:
    return "missing" if value is None else quoted(reprlib.repr(value))
