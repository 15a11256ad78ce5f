"""adapter_config.json against a list of what it may say. Invariant: nothing in it ever runs as a regular expression.

PEFT writes some fifty keys, nearly all of them null. What is not listed here may stand there while it asks for nothing.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from adapters.digests import CONFIG_FILE
from adapters.limits import MAX_ALPHA, MAX_SCALE
from adapters.names import quoted
from adapters.refusals import Refusal, refusal, refuse_any
from adapters.strict_json import parse_strictly


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """All that a plain LoRA's config means."""

    rank: int
    alpha: float
    use_rslora: bool
    target_modules: frozenset[str]
    """Last names or full paths of modules, as the publisher gave them."""

    @property
    def scale(self) -> float:
        """What B·A is multiplied with: alpha / r, or alpha / √r (https://arxiv.org/abs/2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


def read_config(raw: bytes, *, max_rank: int) -> LoraConfig:
    """What the config says.

    Raises:
        RefusedError: `invalid_config`, `unsupported_config`, `invalid_rank`, `rank_too_high`, `invalid_alpha` or
            `scale_too_large`.
    """
    try:
        stated = parse_strictly(raw)
    except ValueError as error:
        raise refusal(Refusal.INVALID_CONFIG, f"{CONFIG_FILE} can't be read: {error}.") from error
    if not isinstance(stated, dict):
        raise refusal(Refusal.INVALID_CONFIG, f"{CONFIG_FILE} is not a JSON object.")

    missing = (f"{CONFIG_FILE} lacks '{key}'" for key in _REQUIRED if key not in stated)
    refuse_any(Refusal.INVALID_CONFIG, missing)
    refuse_any(Refusal.UNSUPPORTED_CONFIG, _unsupported(stated))
    config = LoraConfig(
        rank=_rank(stated["r"], max_rank),
        alpha=_alpha(stated["lora_alpha"]),
        use_rslora=stated.get("use_rslora") or False,
        target_modules=frozenset(stated["target_modules"]),
    )
    if config.scale > MAX_SCALE:
        raise refusal(
            Refusal.SCALE_TOO_LARGE,
            f"lora_alpha {config.alpha:g} at r {config.rank} scales by {config.scale:g}, which is above {MAX_SCALE:g}.",
        )
    return config


def _unsupported(stated: Mapping[str, Any]) -> Iterator[str]:
    for key, value in stated.items():
        is_allowed, allowed = _ALLOWED.get(key, (_is_nothing, "null, false or empty: this registry takes plain LoRA"))
        if not is_allowed(value):
            yield f"{quoted(key)} must be {allowed}"


def _rank(value: object, max_rank: int) -> int:
    if type(value) is not int or value < 1:
        raise refusal(Refusal.INVALID_RANK, "'r' must be a whole number of at least 1.")
    if value > max_rank:
        # The message leaves the number out: a hostile one has thousands of digits.
        raise refusal(Refusal.RANK_TOO_HIGH, f"'r' is above this registry's max_rank of {max_rank}.")
    return value


def _alpha(value: object) -> float:
    if not _is_number(value) or not 0 < value <= MAX_ALPHA:  # NaN compares false
        raise refusal(Refusal.INVALID_ALPHA, f"'lora_alpha' must be a finite number above 0 and at most {MAX_ALPHA}.")
    return float(value)


# --- what a value may be ----------------------------------------------------------------------------------------------

_MODULE: Final = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
_TRANSFORMERS: Final = re.compile(r"transformers(?:\.[A-Za-z0-9_]+)*")
_CLASS: Final = re.compile(r"[A-Za-z0-9_]+")


def _is_nothing(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})


def _is_number(value: object) -> TypeGuard[int | float]:
    """Whether JSON says a number here; Python counts true and false among them."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_module_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and _MODULE.fullmatch(name) for name in value)


def _is_dropout(value: object) -> bool:
    return _is_number(value) and 0 <= value < 1


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


_REQUIRED: Final = ("peft_type", "r", "lora_alpha", "target_modules")

_ALLOWED: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    # These mean something, and are kept.
    "peft_type": (lambda value: value == "LORA", "'LORA'"),
    "r": (lambda _: True, "judged by _rank"),
    "lora_alpha": (lambda _: True, "judged by _alpha"),
    "use_rslora": (_is_flag, "true or false"),
    "target_modules": (
        lambda value: bool(value) and _is_module_list(value),
        "a list of the modules' plain names: patterns and 'all-linear' are not read",
    ),
    # These follow from the tensors, or from the base that was named beside the upload.
    "base_model_name_or_path": (_is_text, "a text"),
    "revision": (_is_text, "a text"),
    "task_type": (lambda value: value in (None, "CAUSAL_LM"), "null or 'CAUSAL_LM'"),
    "auto_mapping": (_is_auto_mapping, "null or a class of transformers"),
    "layers_to_transform": (_is_layers, "layer numbers"),
    "exclude_modules": (lambda value: value is None or _is_module_list(value), "a list of the modules' plain names"),
    # These mattered in training and have no effect afterwards.
    "bias": (lambda value: value == "none", "'none'"),
    "inference_mode": (_is_flag, "true or false"),
    "lora_dropout": (_is_dropout, "a number from 0 up to 1"),
    "init_lora_weights": (
        lambda value: _is_flag(value) or value in ("gaussian", "orthogonal", "eva"),
        "true, false, 'gaussian', 'orthogonal' or 'eva': other methods change the base's own weights",
    ),
    "peft_version": (_is_text, "a text"),
    # PEFT writes these whether or not their feature is on.
    "megatron_core": (_is_text, "a text"),
    "qalora_group_size": (lambda value: value is None or type(value) is int, "a whole number"),
}
