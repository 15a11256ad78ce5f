"""The language-model head, read at the learned positions alone.

Before the head, not around it: what a model does to its logits (scaling, soft caps) stays its own.
"""

from collections.abc import Mapping
from typing import Any

import torch

from trainer.supervision import IGNORED


def learned_logits(model: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401
    """The logits of every learned token in a batch, and the tokens: (learned, vocabulary) and (learned,)."""
    following = inputs["labels"][:, 1:]
    learned = following != IGNORED
    bare = getattr(model, "module", model)  # DDP wraps, and has no head of its own
    hook = bare.get_output_embeddings().register_forward_pre_hook(_Compact(learned))
    try:
        logits = model(**{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False).logits
    finally:
        hook.remove()
    return logits, following[learned]


class _Compact:
    """Hands the head the hidden states before each learned token, one after the other."""

    def __init__(self, learned: torch.Tensor) -> None:
        self._learned = learned

    def __call__(self, _head: object, hidden: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (hidden[0][:, :-1][self._learned],)
