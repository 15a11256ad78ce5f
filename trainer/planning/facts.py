"""What advice is given on, and what it is: plain values. None says that something is not known (yet)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from trainer.job import Method

HEADROOM: Final = 0.9
"""Of the memory: the rest is the allocator's, the driver's and the estimate's error."""


class Goal(StrEnum):
    """What the training is for: it decides whether to train at all, and how much of the base has to change."""

    FORMAT = "format"
    """A form, a style, a tone, a fixed set of classes."""
    LATENCY = "latency"
    """A small model that does one thing as well as a large one, sooner."""
    COST = "cost"
    """The same, for less money at many requests."""
    PRIVACY = "privacy"
    """Data that may not leave the house."""
    KNOWLEDGE = "knowledge"
    """Facts, perhaps ones that change."""
    NUMERIC = "numeric"
    """Numbers, sums, codes: every digit counts."""
    ALL_WEIGHTS = "all_weights"
    """Another language, another vocabulary, a domain far from the base's."""


class Policy(StrEnum):
    """With which method one begins, where the articles disagree."""

    LORA_FIRST = "lora_first"
    """LoRA, then double the rank, then all weights, each on a measured gap (article 001)."""
    QLORA_FIRST = "qlora_first"
    """QLoRA, and LoRA if it is not good enough (article 003)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known beside the job."""

    parameters: int | None = None
    """Of the base."""
    memory_needed: Mapping[Method, int] = field(default_factory=dict)
    """Bytes at the peak, for each method that was estimated, the job's other keys as they are."""
    memory_available: int | None = None
    """Bytes: the GPU's, or, without one, the machine's."""
    has_gpu: bool | None = None
    example_count: int | None = None
    """Of those trained on."""
    is_numeric: bool | None = None
    """Whether the answers are mostly numbers."""
    steps: int | None = None
    """Optimizer steps of the whole training."""
    goal: Goal | None = None
    policy: Policy = Policy.LORA_FIRST


@dataclass(frozen=True, slots=True)
class Advice:
    """Something unwise in a job that can be run all the same."""

    code: str
    """A stable word for it, such as `full_rate_with_lora`."""
    sentence: str
    source: str
    """Whose advice it is: an article, a paper, or what was measured here."""
    fix: str | None = None
    """`key: value`, as it would stand in the job file; None where no key of the job mends it."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """An option that is not recommended."""

    method: Method
    reason: str


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Which method, and why not the others."""

    method: Method | None
    """None: none of them fits into the memory."""
    reasons: tuple[str, ...]
    rejected: tuple[Rejected, ...]
    first: tuple[str, ...]
    """What to try or to decide before anything is trained; may be empty."""
    ladder: tuple[str, ...]
    """What to train next, each rung only on a measured gap."""
    policy: Policy


def fits(method: Method, facts: Facts) -> bool:
    """Whether the method is known to fit into the memory, with room to spare."""
    needed, available = facts.memory_needed.get(method), facts.memory_available
    return needed is not None and available is not None and needed <= HEADROOM * available


def need_of(method: Method, facts: Facts) -> str:
    """`14.2 GB of 24.0 GB`; empty where it is not known."""
    needed, available = facts.memory_needed.get(method), facts.memory_available
    if needed is None or available is None:
        return ""
    return f"{needed / 1e9:.1f} GB of {available / 1e9:.1f} GB"
