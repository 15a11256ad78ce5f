"""Which of several answers a model finds likeliest. The question goes through it once, however many answers there are.

Invariant: an answer's likelihood is what `Speaker.likelihoods` gives for question and answer in one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from trainer.judging.speaker import Speaker, Watch
from trainer.supervision import IGNORED, Example

BATCH: Final = 8
"""Questions at once."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A question and its possible answers, as tokens."""

    question: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


def likelihoods_of_choices(speaker: Speaker, choices: Sequence[Choice], watch: Watch) -> tuple[tuple[float, ...], ...]:
    """The log-probability of each answer after its question."""
    found: dict[int, tuple[float, ...]] = {}
    by_length = sorted(range(len(choices)), key=lambda index: len(choices[index].question))
    for first in range(0, len(by_length), BATCH):
        batch = by_length[first : first + BATCH]
        found.update(zip(batch, _of_batch(speaker, [choices[index] for index in batch]), strict=True))
        watch(len(found), len(choices))
    return tuple(found[index] for index in range(len(choices)))


@torch.inference_mode()
def _of_batch(speaker: Speaker, batch: Sequence[Choice]) -> list[tuple[float, ...]]:
    # The questions, padded on the left so that every answer begins in the same place
    longest = max(len(choice.question) for choice in batch)
    gaps = [longest - len(choice.question) for choice in batch]
    device = speaker.model.device
    padded = zip(batch, gaps, strict=True)
    questions = torch.tensor([[0] * gap + list(choice.question) for choice, gap in padded], device=device)
    mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps], device=device)
    asked = speaker.model(
        input_ids=questions,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=1,
        use_cache=True,
    )
    if not _can_be_shared(asked.past_key_values):
        return _one_by_one(speaker, batch)

    # Each answer goes on where its question ended
    answers = [answer for choice in batch for answer in choice.answers]
    rows = torch.tensor([row for row, choice in enumerate(batch) for _ in choice.answers], device=device)
    length = max(map(len, answers))
    tokens = torch.tensor([[*answer, *[0] * (length - len(answer))] for answer in answers], device=device)
    is_said = torch.tensor([[1] * len(answer) + [0] * (length - len(answer)) for answer in answers], device=device)
    logits = asked.logits[rows].float()
    if length > 1:
        logits = torch.cat([logits, _continued(speaker, asked.past_key_values, rows, mask, tokens[:, :-1])], dim=1)
    said = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    sums = iter((said * is_said).sum(dim=1).tolist())
    return [tuple(next(sums) for _ in choice.answers) for choice in batch]


def _continued(
    speaker: Speaker,
    cache: Any,  # noqa: ANN401  — transformers' cache
    rows: torch.Tensor,
    mask: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """The logits after each of `tokens`, which follow the cached questions `rows`."""
    cache.batch_select_indices(rows)
    whole = torch.cat([mask[rows], torch.ones_like(tokens)], dim=1)
    positions = whole.cumsum(1) - 1
    said = speaker.model(
        input_ids=tokens,
        attention_mask=whole,
        position_ids=positions[:, mask.shape[1] :],
        past_key_values=cache,
        use_cache=True,
    )
    logits: torch.Tensor = said.logits.float()
    return logits


def _can_be_shared(cache: Any) -> bool:  # noqa: ANN401  — transformers' cache
    """Whether it holds keys and values alone; a state that runs on, as linear attention's, is no row of a batch."""
    return all(type(layer) in {DynamicLayer, DynamicSlidingWindowLayer} for layer in getattr(cache, "layers", [None]))


def _one_by_one(speaker: Speaker, batch: Sequence[Choice]) -> list[tuple[float, ...]]:
    found = iter(
        speaker.likelihoods(
            [
                Example([*choice.question, *answer], [IGNORED] * len(choice.question) + list(answer))
                for choice in batch
                for answer in choice.answers
            ],
            _unwatched,
        )
    )
    return [tuple(next(found).log_probability for _ in choice.answers) for choice in batch]


def _unwatched(done: int, total: int) -> None:
    """Eight questions are soon done."""
