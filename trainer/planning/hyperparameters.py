"""What is unwise in the numbers that a method is given: rates, ranks, targets; the articles' figures."""

from collections.abc import Iterator
from typing import Final

from trainer.job import Method, TrainJob, Variant
from trainer.planning.facts import Advice, Facts

HIGHEST_RATE: Final = 1e-3
"""Of LoRA's, in any article (000)."""
HIGHEST_RATE_OF_B: Final = 5e-3
"""LoRA+'s: a ratio of 16 at 3e-4."""
BETWEEN: Final = 5e-5
"""Halfway, by factors, between what all weights take (1e-5 to 2e-5) and what LoRA takes (1e-4 to 1e-3)."""
LOWEST_QUANTISED_RANK: Final = 4
HIGHEST_USEFUL_RANK: Final = 64
ATTENTION: Final = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "q", "k", "v", "o", "query_key_value", "c_attn", "wqkv"}
)
"""Last names of the layers around attention."""


def of_learning_rate(job: TrainJob, _facts: Facts) -> Iterator[Advice]:
    """The most common mistake: the rate of the other method."""
    rate = job.peak_learning_rate
    if job.objective == "dpo":
        yield from _of_preference_rate(job, rate)
    elif job.method.is_adapter and rate < BETWEEN:
        yield Advice(
            "full_rate_with_lora",
            f"{rate:g} is a rate for all weights: an adapter starts at zero, and hardly moves at it.",
            "article 001, which calls it the most common mistake",
            "learning_rate: 2e-4",
        )
    elif job.method.is_adapter and rate > HIGHEST_RATE:
        yield Advice(
            "high_rate",
            f"{rate:g} is above what any article gives LoRA.",
            "000: 2e-4 to 1e-3; 001: 1e-4 to 3e-4; 002: 1e-4, 2e-4, 3e-4; 003: 1e-4 to 5e-4",
            "learning_rate: 2e-4",
        )
    elif not job.method.is_adapter and rate > BETWEEN:
        yield Advice(
            "lora_rate_with_full",
            f"{rate:g} is a rate for LoRA: all weights forget what they knew at it.",
            "articles 000 and 001: 1e-5 to 2e-5",
            "learning_rate: 2e-5",
        )


def _of_preference_rate(job: TrainJob, rate: float) -> Iterator[Advice]:
    usual = job.model_copy(update={"learning_rate": None}).peak_learning_rate
    if rate > 10 * usual:
        yield Advice(
            "supervised_rate_with_dpo",
            f"{rate:g} is a rate for examples to copy: pairs of answers take a tenth, or they are overdone.",
            "TRL's default is 1e-6 for all weights",
            f"learning_rate: {usual:g}",
        )


def of_rank(job: TrainJob, _facts: Facts) -> Iterator[Advice]:
    """Rank and alpha."""
    if not job.method.is_adapter:
        return
    if job.method is Method.QLORA and job.rank < LOWEST_QUANTISED_RANK:
        yield Advice(
            "low_rank_in_few_bits",
            f"Rank {job.rank} can't make up for what 4 bits lose.",
            "article 003: below 4, QLoRA degrades",
            "rank: 8",
        )
    if job.rank > HIGHEST_USEFUL_RANK:
        yield Advice(
            "high_rank",
            f"Rank {job.rank}: above 64 it rarely helps, and takes memory in the server too.",
            "articles 001 and 002: 4 for simple tasks, 8 as a rule, 16 to 32 for hard ones",
            "rank: 32",
        )
    if job.variant is Variant.RSLORA:
        scale = job.alpha / job.rank**0.5
        if scale > 4:  # noqa: PLR2004  — twice the most that alpha = 2r gives plain LoRA
            yield Advice(
                "large_scale",
                f"rslora scales by alpha / √rank = {scale:.1f}, where plain LoRA would by {job.alpha / job.rank:g}.",
                "https://arxiv.org/abs/2312.03732",
                f"alpha: {2 * job.rank**0.5:.0f}",
            )
    elif not job.rank <= job.alpha <= 2 * job.rank:
        yield Advice(
            "unusual_alpha",
            f"alpha {job.alpha:g} scales what rank {job.rank} learns by {job.alpha / job.rank:g}.",
            "articles 001 and 002: alpha is the rank, or twice the rank",
            f"alpha: {2 * job.rank}",
        )


def of_targets(job: TrainJob, _facts: Facts) -> Iterator[Advice]:
    """Which layers are adapted."""
    if not job.method.is_adapter or isinstance(job.target_modules, str):
        return
    if {name.rpartition(".")[2].lower() for name in job.target_modules} <= ATTENTION:
        yield Advice(
            "attention_only",
            "Only layers around attention are adapted: all linear layers learn better.",
            "articles 001, 002 and 003",
            "target_modules: all-linear",
        )


def of_variant(job: TrainJob, _facts: Facts) -> Iterator[Advice]:
    """Variants that nobody has tried together."""
    if job.lora_plus_ratio is None or not job.method.is_adapter:
        return
    if job.variant in {Variant.ADALORA, Variant.PISSA}:
        yield Advice(
            "unstudied_mixture",
            f"LoRA+ is worked out for a B that begins at zero, beside A alone: {job.variant} has neither.",
            "https://arxiv.org/abs/2402.12354",
            "variant: lora",
        )
    if job.peak_learning_rate * job.lora_plus_ratio > HIGHEST_RATE_OF_B:
        yield Advice(
            "high_rate_of_b",
            f"B learns at {job.peak_learning_rate * job.lora_plus_ratio:g}.",
            "https://arxiv.org/abs/2402.12354: with a ratio of 16, take half the usual rate",
            f"learning_rate: {HIGHEST_RATE_OF_B / 2 / job.lora_plus_ratio:.1e}",
        )
