"""TRL's SFTTrainer with a language-model head that is quick on the CPU."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from trl import SFTTrainer

from trainer.recipes.exact import ExactTrainer
from trainer.recipes.learned_head import learned_logits


class GpuSFTTrainer(ExactTrainer, SFTTrainer):  # type: ignore[misc]  # TRL ships no types that strict mode takes
    """SFTTrainer with TRL's own head, which is quick there."""


class CpuSFTTrainer(GpuSFTTrainer):
    """SFTTrainer with a language-model head that reads only the learned positions, in training and evaluation.

    Off CUDA, TRL's own head takes every position (padding and prompts too), works out an entropy for each, and
    multiplies backwards in float32: a step takes 1.4 to 2.2 times as long on the demo's data, to the same loss.
    """

    def compute_loss(
        self,
        model: Any,  # noqa: ANN401
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,  # noqa: FBT001, FBT002  — the overridden method's
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:  # noqa: ANN401
        """The mean negative log-likelihood of the learned tokens, over all of an optimizer step's batches."""
        if return_outputs or self.aux_loss_enabled:  # a mixture of experts, which has a second loss
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        logits, learned = learned_logits(model, inputs)
        total = cross_entropy(logits.float(), learned, reduction="sum")
        if num_items_in_batch is None:
            return total / max(len(learned), 1)
        # The items are those of all processes, and DDP takes the mean of their gradients.
        share = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return total * share / num_items_in_batch.clamp(min=1)
