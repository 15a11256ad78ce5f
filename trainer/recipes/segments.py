"""Attention within each example of a packed row, and the test that none sees another.

transformers masks a packed row by a matrix of all its tokens against all: work and memory go with the square of the
row. Here each example is attended to by itself, with no mask at all.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Final

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainer.errors import TrainingError
from trainer.recipes.learned_head import learned_logits
from trainer.recipes.packing import row_of
from trainer.supervision import Example

NAME: Final = "segments"
BOUNDS: Final = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far a token's log-probability may be, on the mean, from the same token's in an example by itself: what the
precision makes of another order of the sums, and no more."""


def attend_by_segments(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **options: Any,  # noqa: ANN401
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention for (1, heads, tokens, size), causal within each segment of `cu_seq_lens_q`."""
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
    bounds = cu_seq_lens_q.tolist()
    window = options.get("sliding_window")
    parts = [
        sdpa_attention_forward(
            module,
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            _window_mask(end - start, window, query.device) if window and end - start > window else None,
            **options,
        )[0]
        for start, end in pairwise(bounds)
    ]
    return torch.cat(parts, dim=1), None


def _window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    """(1, 1, length, length): each token attends to itself and the window - 1 before it."""
    places = torch.arange(length, device=device)
    distance = places[:, None] - places[None, :]
    return ((distance >= 0) & (distance < window))[None, None]


@contextmanager
def attending_by_segments(model: Any) -> Iterator[bool]:  # noqa: ANN401
    """Have the model attend so in the block; it ignores padding masks then, and is given packed rows alone.

    Gives whether it does: a model that does not take scaled dot-product attention adds to the scores (soft caps, sinks)
    what this would leave out, and is left as it is.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = bare.config._attn_implementation  # noqa: SLF001  — has no public name
    if before != "sdpa":
        yield False
        return
    AttentionInterface.register(NAME, attend_by_segments)
    bare.set_attn_implementation(NAME)
    try:
        yield True
    finally:
        bare.set_attn_implementation(before)


def contamination(model: Any, examples: Sequence[Example], collate: Any) -> float:  # noqa: ANN401
    """How far the examples' learned tokens differ when they share a row: the mean of |Δ log-probability|.

    As training computes them, but for what is drawn: 8-bit layers compute otherwise in an evaluation.
    """
    was_training = model.training
    model.eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.training = True
    with torch.no_grad():
        together = _log_probabilities(model, collate([row_of(examples)]))
        alone = torch.cat([_log_probabilities(model, collate([row_of([example])])) for example in examples])
    model.train(was_training)
    # The first example has nothing before it that it could see.
    later = slice(sum(label >= 0 for label in examples[0].labels[1:]), None)
    return float((together - alone)[later].abs().mean())


def is_clean(difference: float, dtype: torch.dtype) -> bool:
    """Whether it is no more than another order of the sums makes of it; what is no number is no proof."""
    return difference <= BOUNDS.get(dtype, BOUNDS[torch.bfloat16])


def require_no_contamination(difference: float, dtype: torch.dtype) -> None:
    """Raise TrainingError if packed examples see each other."""
    if not is_clean(difference, dtype):
        bound = BOUNDS.get(dtype, BOUNDS[torch.bfloat16])
        raise TrainingError(
            f"packing: this base lets examples in a row see each other (contamination): their log-probabilities are "
            f"{difference:.3g} off on the mean, {bound:g} is allowed. Leave packing out."
        )


def _log_probabilities(model: Any, batch: dict[str, Any]) -> torch.Tensor:  # noqa: ANN401
    device = next(model.parameters()).device
    inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
    logits, tokens = learned_logits(model, inputs)
    return logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
