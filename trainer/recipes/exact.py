"""What transformers' Trainer leaves to chance or to the batch size, made exact.

The held-out loss is the mean over learned tokens, whatever the batches; an evaluation draws nothing that training
would have drawn; the order of the examples follows from the seed and the epoch, so that a resumed run has the same.
"""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.trainer_pt_utils import get_length_grouped_indices

from trainer.recipes.randomness import untouched_randomness
from trainer.supervision import IGNORED

LOSS: Final = "eval_loss"
"""transformers' name for it: early stopping and the trackers look for that one."""
SECONDS: Final = "eval_runtime"


class LengthGrouped(Sampler[int]):
    """Examples of like length one after the other, in batches; another order in each epoch.

    transformers' own draws from the global generator, which stands elsewhere when a run is resumed.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Accelerate's loader calls it before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._batch_size, generator=generator))


class RepeatableTrainer(Trainer):  # type: ignore[misc]  # transformers ships no types
    """To be put before a trainer of TRL's: evaluations draw nothing, and each epoch has its order."""

    def evaluate(self, *words: Any, **options: Any) -> dict[str, float]:  # noqa: ANN401  — the overridden method's
        """As the trainer behind it does; what follows draws as if it had not been."""
        with untouched_randomness():
            metrics: dict[str, float] = super().evaluate(*words, **options)
        return metrics

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:  # noqa: ANN401
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows = self.train_dataset if train_dataset is None else train_dataset
        lengths = [sum(len(tokens) for tokens in row.values()) for row in rows]
        step_examples = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGrouped(lengths, batch_size=step_examples, seed=self.args.seed)


class ExactTrainer(RepeatableTrainer):
    """For supervised training: the held-out loss is over tokens."""

    def evaluate(
        self,
        eval_dataset: Any = None,  # noqa: ANN401
        ignore_keys: list[str] | None = None,  # noqa: ARG002  — the overridden method's
        metric_key_prefix: str = "eval",  # noqa: ARG002
    ) -> dict[str, float]:
        """The held-out loss: one forward for each example, and no gradient."""
        started = time.monotonic()
        was_training = self.model.training
        self.model.eval()
        with untouched_randomness(), torch.no_grad():
            loss = self._mean_loss(self.eval_dataset if eval_dataset is None else eval_dataset)
            metrics = {LOSS: loss, SECONDS: round(time.monotonic() - started, 3)}
            self.log(metrics)
            self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.model.train(was_training)
        return metrics

    def try_batch(self, inputs: dict[str, Any]) -> None:
        """Forward and backward, to no end but to see what it takes; nothing is left of it."""
        self.model.train()
        inputs = self._prepare_inputs(inputs)
        with self._computing():
            loss = self.compute_loss(self.model, inputs, num_items_in_batch=_one(inputs))
        loss.backward()
        self._forget()

    def try_evaluation(self, inputs: dict[str, Any]) -> None:
        """As in an evaluation."""
        self.model.eval()
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self._computing():
            self.compute_loss(self.model, inputs, num_items_in_batch=_one(inputs))
        self._forget()

    def _mean_loss(self, rows: Any) -> float:  # noqa: ANN401
        """Over all learned tokens; the rows are shared out among the processes of the run."""
        model = self.model_wrapped if self.is_in_train else self.model
        size, rank, world = self.args.eval_batch_size, self.args.process_index, self.args.world_size
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]))  # less padding
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        sums = torch.zeros(2, dtype=torch.float64, device="cpu" if self.args.use_cpu else self.args.device)
        for turn in range(math.ceil(len(batches) / world)):
            mine = turn * world + rank
            # All processes go forward equally often (sharded models must), and a repeated batch does not count.
            batch = self.data_collator([rows[row] for row in batches[min(mine, len(batches) - 1)]])
            batch = self._prepare_inputs(batch)
            with self._computing():
                total = self.compute_loss(model, dict(batch), num_items_in_batch=_one(batch))
            if mine < len(batches):
                learned = (batch["labels"][:, 1:] != IGNORED).sum()
                sums += torch.stack([total.double(), learned.double()])
        total, learned = self.accelerator.reduce(sums).tolist()
        return float(total / self.args.world_size / max(learned, 1.0))

    def _computing(self) -> Any:  # noqa: ANN401
        """In the precision of the training, also before accelerate has wrapped the model."""
        return torch.autocast(self.args.device.type, dtype=torch.bfloat16, enabled=self.args.bf16)

    def _forget(self) -> None:
        """TRL's own counts of what went through."""
        for counts in getattr(self, "_metrics", {}).values():
            counts.clear()
        self._total_train_tokens = 0


def _one(inputs: dict[str, Any]) -> torch.Tensor:
    """The loss is a sum over one item: the batch."""
    return torch.ones((), device=inputs["labels"].device)
