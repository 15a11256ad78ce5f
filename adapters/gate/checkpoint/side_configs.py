"""tokenizer_config.json and generation_config.json against lists of what they may say."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from adapters.gate.checkpoint.config import TOKEN_IDS, CheckpointConfig
from adapters.names import quoted
from adapters.refusals import Faults, Refusal

_CLASS: Final = re.compile(r"[A-Za-z0-9_]{1,64}")
_ID: Final = re.compile(r"[0-9]{1,9}")
_TOKEN_KEYS: Final = frozenset({"content", "lstrip", "normalized", "rstrip", "single_word", "special", "__type"})


def read_tokenizer_config(stated: Mapping[str, Any], ids: Mapping[str, int], *, faults: Faults) -> dict[str, Any]:
    """What is stored of it. `ids` are those of tokenizer.json. Adds `tokenizer_invalid` to `faults`.

    A token that is named here and nowhere else would get an id beyond the vocabulary when it is loaded.
    """
    wrong = [*_not_allowed(stated), *_unknown_tokens(stated, ids)]
    faults.add(Refusal.TOKENIZER_INVALID, (f"in tokenizer_config.json, {each}" for each in wrong))
    return {key: value for key, value in stated.items() if key in _ALLOWED and value is not None}


def read_generation_config(stated: Mapping[str, Any], config: CheckpointConfig, *, faults: Faults) -> dict[str, Any]:
    """What is stored of it: the ids at which an answer ends, and how to sample. Adds `invalid_config` to `faults`.

    The rest are defaults of one library's own `generate`, which no engine reads.
    """
    kept = {key: value for key, value in stated.items() if key in {*TOKEN_IDS, *_SAMPLING} and value is not None}
    faults.add(
        Refusal.INVALID_CONFIG,
        (
            f"in generation_config.json, {quoted(key)} is not what it can be"
            for key, value in kept.items()
            if not (config.allows_ids(value) if key in TOKEN_IDS else _SAMPLING[key](value))
        ),
    )
    return kept


def _not_allowed(stated: Mapping[str, Any]) -> Iterator[str]:
    for key, value in stated.items():
        if key in _DROPPED or _is_nothing(value):
            continue
        if key not in _ALLOWED:
            yield f"{quoted(key)} must be left out: it is not known, or is code"
        elif not _ALLOWED[key](value):
            yield f"{quoted(key)} is not what it can be"


def _unknown_tokens(stated: Mapping[str, Any], ids: Mapping[str, int]) -> Iterator[str]:
    for key in _NAMED_TOKENS:
        for text in _texts(stated.get(key)):
            if text not in ids:
                yield f"{quoted(key)} names the token {quoted(text)}, which tokenizer.json has not"
    decoder = stated.get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        for text in _texts(token):
            if str(ids.get(text)) != number:
                yield f"the token {quoted(text)} has another id in tokenizer.json"


def _texts(stated: object) -> Iterator[str]:
    """Of a token, of a list of them, or of an object by name."""
    if isinstance(stated, dict) and "content" not in stated:
        stated = list(stated.values())
    for each in stated if isinstance(stated, list) else [stated]:
        text = each.get("content") if isinstance(each, dict) else each
        if isinstance(text, str) and text:
            yield text


# --- what a value may be ----------------------------------------------------------------------------------------------


def _is_nothing(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_class(value: object) -> bool:
    return isinstance(value, str) and _CLASS.fullmatch(value) is not None


def _is_token(value: object) -> bool:
    if isinstance(value, dict):
        return (
            value.keys() <= _TOKEN_KEYS
            and isinstance(value.get("content"), str)
            and all(isinstance(each, bool | str) for each in value.values())
        )
    return isinstance(value, str)


def _are_tokens(value: object) -> bool:
    return isinstance(value, list | dict) and all(
        _is_token(each) for each in (value.values() if isinstance(value, dict) else value)
    )


def _are_numbered(value: object) -> bool:
    return isinstance(value, dict) and all(_ID.fullmatch(key) for key in value) and _are_tokens(value)


def _is_within(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in {int, float} and low <= value <= high


def _is_one_of(*values: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in values


_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TOKEN_LISTS: Final = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")
_NAMED_TOKENS: Final = (*_TOKENS, *_TOKEN_LISTS)
_ALLOWED: Final[Mapping[str, Callable[[Any], bool]]] = {
    "tokenizer_class": _is_class,
    "backend": _is_one_of("tokenizers"),
    "model_max_length": _is_within(1, 1e31),
    **dict.fromkeys(_TOKENS, _is_token),
    **dict.fromkeys(_TOKEN_LISTS, _are_tokens),
    "added_tokens_decoder": _are_numbered,
    **dict.fromkeys(
        (
            *("add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces", "legacy"),
            *("split_special_tokens", "spaces_between_special_tokens", "use_default_system_prompt", "do_lower_case"),
            *("strip_accents", "tokenize_chinese_chars", "trim_offsets", "from_slow", "use_fast"),
        ),
        _is_flag,
    ),
    **dict.fromkeys(("padding_side", "truncation_side"), _is_one_of("left", "right")),
    "errors": _is_one_of("replace", "strict", "ignore"),
    "model_input_names": lambda value: isinstance(value, list) and all(_is_class(name) for name in value),
}
_DROPPED: Final = frozenset(
    {
        *("name_or_path", "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "processor_class"),
        *("transformers_version", "is_local", "local_files_only", "_commit_hash", "device_map", "unk_id"),
        *("max_length", "stride", "truncation_strategy", "pad_to_multiple_of", "pad_token_type_id", "response_schema"),
        "chat_template",  # judged by check_template
    }
)
"""Of no effect once a tokenizer is made, or paths of another machine."""
_SAMPLING: Final[Mapping[str, Callable[[Any], bool]]] = {
    "do_sample": _is_flag,
    "temperature": _is_within(0, 10),
    "top_p": _is_within(0, 1),
    "top_k": _is_within(0, 1 << 24),
    "min_p": _is_within(0, 1),
    "repetition_penalty": _is_within(0.01, 10),
}
