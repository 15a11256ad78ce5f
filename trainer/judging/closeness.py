"""How near two models' next-token distributions are on the same texts: merged beside unmerged, quantised beside not."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch.nn.functional import kl_div
from transformers import AutoTokenizer

from trainer.errors import JudgeError
from trainer.judging.comparison import Closeness
from trainer.judging.speaker import load_speaker
from trainer.judging.values import Side
from trainer.progress import Narrator

PROMPTS: Final = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Dear customer, thank you for your message. Your order was sent on Monday and will arrive tomorrow.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    '{"name": "Ada", "born": 1815, "known for": "the first program"}',
    "Question: What do bees make?\nAnswer: Honey, from the nectar of flowers.",
)
MOST_TOKENS: Final = 1024
"""Compared at the most: their logits are held in memory, a row as wide as the vocabulary for each."""


def closeness(
    first: Side, second: Side, prompts: Sequence[str], narrator: Narrator, *, precision: str = "float32"
) -> Closeness:
    """The logits of both sides on the same texts, of which there must be one; one model is held at a time.

    Raises:
        JudgeError: one can't be loaded, or their vocabularies differ, so that there is nothing to compare.
    """
    tokens = _tokens(first.model, prompts)
    with narrator.step(f"logits of {first.label}"):
        of_first = _logits(first, tokens, precision)
    with narrator.step(f"logits of {second.label}"):
        of_second = _logits(second, tokens, precision)
    if of_first.shape[1] != of_second.shape[1]:
        raise JudgeError(
            f"The vocabularies of {first.label} ({of_first.shape[1]} tokens) and {second.label} ({of_second.shape[1]}) "
            "differ: their logits can't be compared."
        )
    return _compare(of_first, of_second)


def _tokens(folder: Path, prompts: Sequence[str]) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    found, left = [], MOST_TOKENS
    for tokens in tokenizer(list(prompts), add_special_tokens=True)["input_ids"]:
        if tokens[:left]:
            found.append(tokens[:left])
            left -= len(tokens[:left])
    return found


def _logits(side: Side, tokens: Sequence[Sequence[int]], precision: str) -> torch.Tensor:
    """(positions, vocabulary), in float32."""
    speaker = load_speaker(side, precision)
    logits = torch.cat([speaker.logits(prompt) for prompt in tokens])
    del speaker
    gc.collect()
    return logits


def _compare(first: torch.Tensor, second: torch.Tensor) -> Closeness:
    # A constant added to all of a position's logits changes no answer.
    off = ((first - first.mean(1, keepdim=True)) - (second - second.mean(1, keepdim=True))).abs()
    before, after = first.log_softmax(1), second.log_softmax(1)
    divergence = kl_div(after, before, reduction="none", log_target=True).sum(1).clamp(min=0)
    return Closeness(
        tokens=len(first),
        largest=float(off.max()),
        mean=float(off.mean()),
        kl_per_token=float(divergence.mean()),
        top1_agreement=float((first.argmax(1) == second.argmax(1)).float().mean()),
    )
