"""Whole sets of a job's keys: how boldly to learn, and the scenarios of the articles.

A preset is where the keys that a job leaves out come from; a key that the job has wins, and takes along those of the
preset's that only made sense without it. Presets say nothing of sections.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from trainer.contradictions import ADAPTER_ONLY, QUANTIZED_ONLY
from trainer.errors import JobError
from trainer.job import Method

SHOWN_CHARACTERS: Final = 80
"""Of a name that can't be."""


@dataclass(frozen=True, slots=True)
class Preset:
    """Keys of a job, and what for."""

    description: str
    source: str
    """Whose figures they are, and what was added to them."""
    keys: Mapping[str, Any]


PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        "conservative": Preset(
            "Change little: a first try, or a base that must stay what it is.",
            "article 002's profile: rate and alpha",
            {"rank": 8, "alpha": 8, "learning_rate": 1e-4, "epochs": 1},
        ),
        "recommended": Preset(
            "Where to begin.",
            "article 002's profile: rate and alpha; near the middle of all four",
            {"rank": 16, "alpha": 32, "learning_rate": 2e-4, "epochs": 3},
        ),
        "aggressive": Preset(
            "Change much: a hard task with many examples. `lorikeet train plan` warns of what it risks.",
            "article 002's profile: rate and alpha",
            {"rank": 64, "alpha": 128, "learning_rate": 3e-4, "epochs": 5},
        ),
        "chatbot": Preset(
            "A chatbot of one's own, all weights: 10 000 examples and more, a GPU of 48 GB for 7 B parameters.",
            "article 000: all weights; pure bfloat16 and 8-bit states are ours, without which 48 GB are not enough",
            {
                "method": "full",
                "learning_rate": 2e-5,
                "epochs": 2,
                "batch_size": 4,
                "gradient_accumulation": 8,
                "weight_decay": 0.01,
                "optimizer": "paged_adamw_8bit",
                "precision": "bfloat16",
                "gradient_checkpointing": True,
            },
        ),
        "legal": Preset(
            "Documents of one trade: some 2000 examples, a GPU of 16 GB.",
            "article 000: LoRA; rank, rate and batch are within its ranges",
            {
                "method": "lora",
                "rank": 16,
                "alpha": 32,
                "learning_rate": 2e-4,
                "epochs": 3,
                "batch_size": 4,
                "gradient_accumulation": 4,
            },
        ),
        "medical": Preset(
            "A specialist's language on a GPU of 8 GB: the base in 4 bits.",
            "article 000: QLoRA on 8 GB; article 003's rate and warm-up",
            {
                "method": "qlora",
                "rank": 16,
                "alpha": 32,
                "learning_rate": 2e-4,
                "warmup": 0.1,
                "batch_size": 1,
                "gradient_accumulation": 16,
                "optimizer": "paged_adamw_8bit",
                "gradient_checkpointing": True,
            },
        ),
        "faq": Preset(
            "Short answers to known questions, as cheaply as can be.",
            "article 003: QLoRA, rank 8, batches of 1 to 4",
            {
                "method": "qlora",
                "rank": 8,
                "alpha": 16,
                "learning_rate": 2e-4,
                "warmup": 0.1,
                "batch_size": 4,
                "gradient_accumulation": 4,
            },
        ),
        "code": Preset(
            "Code in the house's style.",
            "article 003: LoRA, rank 16, batches of 4 to 8",
            {"method": "lora", "rank": 16, "alpha": 32, "learning_rate": 2e-4, "batch_size": 8},
        ),
        "medical-precision": Preset(
            "A specialist's language where small errors matter: only the optimizer in 8 bits.",
            "article 003: LoRA, rank 32, 8-bit Adam",
            {
                "method": "lora",
                "rank": 32,
                "alpha": 64,
                "learning_rate": 2e-4,
                "optimizer": "adamw_8bit",
                "batch_size": 4,
                "gradient_accumulation": 4,
            },
        ),
        "multimodal-text": Preset(
            "The text half of a model of several senses: higher ranks only where they help.",
            "article 003: QLoRA with AdaLoRA, rank 12",
            {
                "method": "qlora",
                "variant": "adalora",
                "rank": 12,
                "alpha": 24,
                "learning_rate": 2e-4,
                "warmup": 0.1,
                "batch_size": 4,
                "gradient_accumulation": 4,
            },
        ),
        "latency-first": Preset(
            "A small model that answers at once: short prompts, short answers.",
            "article 002: QLoRA on 7 B, served by vLLM; the short rows are ours",
            {
                "method": "qlora",
                "rank": 16,
                "alpha": 32,
                "learning_rate": 2e-4,
                "max_length": 512,
            },
        ),
        "cost-first": Preset(
            "The least memory and time that still teaches a form.",
            "article 002: QLoRA on 7 B; the low rank and the one epoch are ours",
            {
                "method": "qlora",
                "rank": 8,
                "alpha": 16,
                "learning_rate": 2e-4,
                "epochs": 1,
                "optimizer": "paged_adamw_8bit",
            },
        ),
    }
)


def keys_of(name: object) -> Mapping[str, Any]:
    """The keys of the preset of that name; none for no name. Raises JobError for an unknown one."""
    if name is None:
        return {}
    if not isinstance(name, str) or name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1)
        raise JobError(
            f"preset: there is no {json.dumps(name, default=str)[:SHOWN_CHARACTERS]}: "
            + (f"did you mean '{near[0]}'?" if near else f"use {', '.join(PRESETS)}.")
        )
    return PRESETS[name].keys


def completed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a job with those of its preset, as far as they go with it. Raises JobError for an unknown preset."""
    preset = keys_of(given.get("preset"))
    return {key: value for key, value in preset.items() if _goes_with(key, preset, given)} | dict(given)


def _goes_with(key: str, preset: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether the preset's `key` still makes sense beside what the job says itself."""
    meant = preset.get("method", Method.LORA)
    method = given.get("method", meant)
    if key in ADAPTER_ONLY:
        return bool(method != Method.FULL)
    if key in QUANTIZED_ONLY:
        return bool(method == Method.QLORA)
    if key == "learning_rate":
        return (method == Method.FULL) == (meant == Method.FULL) and given.get("objective") != "dpo"
    if key == "precision":  # pure bfloat16 is how all weights fit
        return bool(method == meant)
    return key != "epochs" or given.get("max_steps") is None
