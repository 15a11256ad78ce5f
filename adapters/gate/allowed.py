"""What each key of adapter_config.json may say. Invariant: nothing in it ever runs as a regular expression.

PEFT writes some fifty keys, nearly all of them null. What is not listed here may stand there while it asks for nothing.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeGuard

from adapters.gate.conversions import PLAIN_INITIALISATIONS, is_changing
from adapters.names import quoted

REQUIRED: Final = ("peft_type", "r", "lora_alpha", "target_modules")

_MODULE: Final = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
_TRANSFORMERS: Final = re.compile(r"transformers(?:\.[A-Za-z0-9_]+)*")
_CLASS: Final = re.compile(r"[A-Za-z0-9_]+")
_NOTHING: Final = "null, false or empty: this registry takes plain LoRA"


def not_allowed(stated: Mapping[str, Any]) -> Iterator[str]:
    """The keys that say what they may not. What a conversion would take care of is passed over."""
    initialisation = stated.get("init_lora_weights")
    for key, value in stated.items():
        is_own = isinstance(initialisation, str) and key == f"{initialisation.partition('_niter_')[0].lower()}_config"
        if is_own and isinstance(value, dict):
            continue  # how the method was set up; it is done with
        is_allowed, allowed = _ALLOWED.get(key, (_is_nothing, _NOTHING))
        if not is_allowed(value):
            yield f"{quoted(key)} must be {allowed}"


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether JSON says a number here; Python counts true and false among them."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_pattern(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether it is a rank_pattern or alpha_pattern by plain names; `^` before one says that it is the whole path."""
    return isinstance(value, dict) and all(_MODULE.fullmatch(name.removeprefix("^")) for name in value)


def is_module_list(value: object) -> TypeGuard[list[str]]:
    """Whether it is a list of modules' plain names."""
    return isinstance(value, list) and all(isinstance(name, str) and _MODULE.fullmatch(name) for name in value)


def _is_nothing(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_dropout(value: object) -> bool:
    return is_number(value) and 0 <= value < 1


def _is_layers(value: object) -> bool:
    return value is None or all(type(index) is int for index in (value if isinstance(value, list) else [value]))


def _is_auto_mapping(value: object) -> bool:
    """The base's class, which PEFT writes where there is no task_type. Only one of transformers' own is harmless."""
    if not isinstance(value, dict):
        return value is None
    return (
        value.keys() == {"base_model_class", "parent_library"}
        and all(isinstance(name, str) for name in value.values())
        and _CLASS.fullmatch(value["base_model_class"]) is not None
        and _TRANSFORMERS.fullmatch(value["parent_library"]) is not None
    )


_PATTERN: Final = "an object by the modules' plain names: patterns are not read"

_ALLOWED: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    # These mean something, and are kept.
    "peft_type": (lambda value: value == "LORA", "'LORA'"),
    "r": (lambda _: True, "judged as a rank"),
    "lora_alpha": (lambda _: True, "judged as an alpha"),
    "use_rslora": (_is_flag, "true or false"),
    "rank_pattern": (lambda value: _is_nothing(value) or is_pattern(value), _PATTERN),
    "alpha_pattern": (lambda value: _is_nothing(value) or is_pattern(value), _PATTERN),
    "target_modules": (
        lambda value: bool(value) and is_module_list(value),
        "a list of the modules' plain names: patterns and 'all-linear' are not read",
    ),
    # These follow from the tensors, or from the base that was named beside the upload.
    "base_model_name_or_path": (_is_text, "a text"),
    "revision": (_is_text, "a text"),
    "task_type": (lambda value: value in (None, "CAUSAL_LM"), "null or 'CAUSAL_LM'"),
    "auto_mapping": (_is_auto_mapping, "null or a class of transformers"),
    "layers_to_transform": (_is_layers, "layer numbers"),
    "exclude_modules": (lambda value: value is None or is_module_list(value), "a list of the modules' plain names"),
    # These mattered in training and have no effect afterwards.
    "bias": (lambda value: value == "none", "'none': biases belong to the base, and no conversion takes them along"),
    "inference_mode": (_is_flag, "true or false"),
    "lora_dropout": (_is_dropout, "a number from 0 up to 1"),
    "init_lora_weights": (
        lambda value: _is_flag(value) or value in PLAIN_INITIALISATIONS or is_changing(value),
        f"true, false or one of {', '.join(map(repr, PLAIN_INITIALISATIONS))}",
    ),
    "peft_version": (_is_text, "a text"),
    # A conversion's affair.
    "use_dora": (_is_flag, "true or false"),
    # PEFT writes these whether or not their feature is on.
    "megatron_core": (_is_text, "a text"),
    "qalora_group_size": (lambda value: value is None or type(value) is int, "a whole number"),
}
