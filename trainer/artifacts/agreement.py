"""How alike two models answer, logit by logit, on the fixed prompts of `conversion.likeness`."""

from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.conversion.likeness import Original, load_base, logits_of


@dataclass(frozen=True, slots=True)
class Agreement:
    """Over all positions of all prompts, in float32."""

    largest: float
    """Difference between two logits."""
    mean: float
    relative: float
    """‖wanted - found‖ / ‖wanted - base‖: which share of what the adapter does is lost or made up."""
    divergence: float
    """Kullback-Leibler's, in nats a position: what is lost by taking the one distribution for the other."""
    same_choice: float
    """The share of positions where both find the same token likeliest."""


def agree(original: Original, made: Path) -> Agreement:
    """The model in the folder `made` beside the original. Raises BaseError if transformers can't load it."""
    return compare(original, logits_of(load_base(made), made))


def compare(original: Original, found: torch.Tensor) -> Agreement:
    """`found` beside the original: (positions, vocabulary)."""
    wanted = original.adapted
    difference = original.difference(found)
    wanted_log, found_log = (torch.log_softmax(side, dim=-1) for side in (wanted, found))
    divergence = (wanted_log.exp() * (wanted_log - found_log)).sum(dim=-1).mean()
    return Agreement(
        largest=difference.largest,
        mean=difference.mean,
        relative=difference.relative,
        divergence=max(float(divergence), 0.0),
        same_choice=float((wanted.argmax(dim=-1) == found.argmax(dim=-1)).double().mean()),
    )
