"""adapter_config.json: what it means for a LoRA, or all that is wrong with it. Which words it may use: `allowed`."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from adapters.digests import CONFIG_FILE
from adapters.gate.allowed import REQUIRED, is_module_list, is_number, is_pattern, not_allowed
from adapters.gate.conversions import convertible_config, is_adalora
from adapters.limits import MAX_ALPHA, MAX_SCALE
from adapters.names import quoted
from adapters.refusals import Faults, Refusal
from adapters.strict_json import parse_strictly
from adapters.values import Base

_FINGERPRINT: Final = re.compile(r"sha256:[0-9a-f]{64}")
_LARGEST_RANK: Final = 1 << 16
"""Beyond it nothing is computed or told with the number: a hostile one has thousands of digits."""
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """All that a plain LoRA's config means."""

    rank: int
    alpha: float
    use_rslora: bool
    target_modules: frozenset[str]
    """Last names or full paths of modules, as the publisher gave them."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """By full path, of modules that have one of their own (PEFT's rank_pattern)."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    """The same (alpha_pattern)."""
    is_of_original: bool = False
    """Whether it says that it was trained on what its base was quantised from."""

    def rank_of(self, module: str) -> int:
        """The rank of A and B at the module of this full path."""
        return self.ranks.get(module, self.rank)

    def alpha_of(self, module: str) -> float:
        """The module's alpha."""
        return self.alphas.get(module, self.alpha)

    def scale_of(self, module: str) -> float:
        """What B·A is multiplied with: alpha / r, or alpha / √r (https://arxiv.org/abs/2312.03732)."""
        return _scale(self.rank_of(module), self.alpha_of(module), use_rslora=self.use_rslora)

    def settled(self, modules: Iterable[str]) -> "LoraConfig":
        """The one way to say the same of `modules`: the largest rank and alpha, and of each module what differs."""
        ranks = {module: self.rank_of(module) for module in modules}
        alphas = {module: self.alpha_of(module) for module in ranks}
        rank, alpha = max(ranks.values()), max(alphas.values())
        return replace(
            self,
            rank=rank,
            alpha=alpha,
            ranks={module: own for module, own in ranks.items() if own != rank},
            alphas={module: own for module, own in alphas.items() if own != alpha},
        )


def read_config(raw: bytes, *, max_rank: int, base: Base, faults: Faults) -> LoraConfig | None:
    """What the config says; None if that can't be told.

    Adds `invalid_config`, `unsupported_config`, `needs_conversion`, `base_mismatch`, `invalid_rank`, `rank_too_high`,
    `invalid_alpha` and `scale_too_large` to `faults`.
    """
    stated = _parse(raw, faults)
    if stated is None:
        return None
    faults.add(Refusal.NEEDS_CONVERSION, convertible_config(stated))
    faults.add(Refusal.BASE_MISMATCH, _of_another_base(stated, base))
    if is_adalora(stated):
        return None
    if (peft_type := stated.get("peft_type", "LORA")) != "LORA":
        faults.add(Refusal.UNSUPPORTED_CONFIG, [f"'peft_type' must be 'LORA', not {quoted(str(peft_type))}"])
        return None

    faults.add(Refusal.INVALID_CONFIG, (f"{CONFIG_FILE} lacks '{key}'" for key in REQUIRED if key not in stated))
    faults.add(Refusal.UNSUPPORTED_CONFIG, not_allowed(stated))
    return _meaning(stated, max_rank, base, faults)


def _parse(raw: bytes, faults: Faults) -> dict[str, Any] | None:
    try:
        stated = parse_strictly(raw)
    except ValueError as error:
        faults.add(Refusal.INVALID_CONFIG, [f"{CONFIG_FILE} can't be read: {error}"])
        return None
    if not isinstance(stated, dict):
        faults.add(Refusal.INVALID_CONFIG, [f"{CONFIG_FILE} is not a JSON object"])
        return None
    return stated


def _of_another_base(stated: Mapping[str, Any], base: Base) -> Iterator[str]:
    """Only a fingerprint tells: anything else is a place on the trainer's machine, or a name among many."""
    named = stated.get("base_model_name_or_path")
    if isinstance(named, str) and _FINGERPRINT.fullmatch(named) and not base.takes(named):
        yield (
            f"'base_model_name_or_path' is {quoted(named)}, and the base {quoted(base.name)} is"
            f" {quoted(base.fingerprint)}: name the base that the adapter was trained on"
        )


def _meaning(stated: Mapping[str, Any], max_rank: int, base: Base, faults: Faults) -> LoraConfig | None:
    """None if a part of it can't be told. A rank that is only too high still tells what the shapes should be."""
    ranks, alphas = (_by_module(stated, key, pattern) for key, pattern in _PATTERNS.items())
    faults.add(Refusal.INVALID_RANK, (_rank_named(key, _WHOLE) for key, value in ranks.items() if not _is_rank(value)))
    faults.add(
        Refusal.RANK_TOO_HIGH,
        (
            _rank_named(key, f"at most this registry's max_rank of {max_rank}{_told(value)}")
            for key, value in ranks.items()
            if _is_rank(value) and value > max_rank
        ),
    )
    faults.add(Refusal.INVALID_ALPHA, (_alpha_named(key) for key, value in alphas.items() if not _is_alpha(value)))
    targets, use_rslora = stated.get("target_modules"), stated.get("use_rslora") or False
    if not (
        "" in ranks
        and "" in alphas
        and all(_is_rank(value) and value <= _LARGEST_RANK for value in ranks.values())
        and all(map(_is_alpha, alphas.values()))
        and is_module_list(targets)
        and isinstance(use_rslora, bool)
    ):
        return None
    rank, alpha = ranks.pop(""), float(alphas.pop(""))
    own_alphas = {module: float(value) for module, value in _resolved(alphas, base.modules).items()}
    original = base.quantised_from
    is_of_original = original is not None and stated.get("base_model_name_or_path") == original
    config = LoraConfig(
        rank, alpha, use_rslora, frozenset(targets), _resolved(ranks, base.modules), own_alphas, is_of_original
    )
    if rank <= max_rank:
        faults.add(Refusal.SCALE_TOO_LARGE, too_large("'lora_alpha'", rank, alpha, use_rslora=use_rslora))
    return config


def too_large(whose: str, rank: int, alpha: float, *, use_rslora: bool) -> Iterator[str]:
    """What to say of a scale that nobody ever trained with; nothing of others."""
    scale = _scale(rank, alpha, use_rslora=use_rslora)
    if scale > MAX_SCALE:
        yield f"{whose} {alpha:g} at r {rank} scales by {scale:g}; at most {MAX_SCALE:g} is allowed"


def _scale(rank: int, alpha: float, *, use_rslora: bool) -> float:
    return alpha / (math.sqrt(rank) if use_rslora else rank)


# --- ranks and alphas: the one for all modules, and those of a pattern ------------------------------------------------

_PATTERNS: Final = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}
_WHOLE: Final = "a whole number of at least 1"


def _by_module(stated: Mapping[str, Any], key: str, pattern: str) -> dict[str, Any]:
    """What `pattern` says, and under "" what `key` does, as far as they say anything."""
    by_module = stated.get(pattern)
    common = {"": stated[key]} if key in stated else {}
    return {**common, **by_module} if is_pattern(by_module) else common


def _resolved(pattern: Mapping[str, Value], modules: Iterable[str]) -> dict[str, Value]:
    """By full path. As in PEFT, a key is the end of a path, or after `^` all of it, and the first that fits counts."""
    positions = {key: position for position, key in enumerate(pattern)}
    resolved = {}
    for module in modules:
        names = module.split(".")
        ends = [f"^{module}", *(".".join(names[start:]) for start in range(len(names)))]
        if fitting := [end for end in ends if end in positions]:
            resolved[module] = pattern[min(fitting, key=positions.__getitem__)]
    return resolved


def _is_rank(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_alpha(value: object) -> bool:
    return is_number(value) and 0 < value <= MAX_ALPHA  # NaN compares false


def _rank_named(key: str, right: str) -> str:
    return f"{quoted(key) + ' of rank_pattern' if key else repr('r')} must be {right}"


def _alpha_named(key: str) -> str:
    whose = f"{quoted(key)} of alpha_pattern" if key else "'lora_alpha'"
    return f"{whose} must be a finite number above 0 and at most {MAX_ALPHA}"


def _told(rank: int) -> str:
    return f", not {rank}" if rank <= _LARGEST_RANK else ""
