"""Does the longest batch fit? Tried before the first step; if not, it is split so that a step's examples stay the same.

Weights, random numbers and optimizer are what they were before: a run that fits learns the same with the probe and
without. A GPU says when it runs out; a CPU's process is killed without a word, so there it is worked out from what one
and two examples take, and only what should fit is tried.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from trainer.errors import JobError, TrainingError
from trainer.job import TrainJob
from trainer.recipes import held_memory
from trainer.recipes.randomness import untouched_randomness
from trainer.step import Fitted

MARGIN: Final = 0.92
"""The share of the memory that a batch may take: later ones are split otherwise, and leave holes."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What a batch took, or would take."""

    fits: bool
    peak_bytes: int
    limit_bytes: int


Attempt = Callable[[int], Tried]
"""Try a batch of so many of the longest examples."""


def fitting(batch_size: int, gradient_accumulation: int, attempt: Attempt) -> Fitted:
    """The largest batch that fits: halved, and halved again; of an odd number, the largest divisor below a half.

    Raises:
        TrainingError: one example alone does not fit.
    """
    size = batch_size
    while True:
        tried = attempt(size)
        if tried.fits:
            accumulation = gradient_accumulation * (batch_size // size)
            return Fitted(0, size, accumulation, tried.peak_bytes, tried.limit_bytes)
        if size == 1:
            raise TrainingError(
                f"One example of the longest takes {_gigabytes(tried.peak_bytes)} of "
                f"{_gigabytes(tried.limit_bytes)} memory: shorten max_length, set gradient_checkpointing: true, "
                "or take method qlora."
            )
        size = max(divisor for divisor in range(1, size // 2 + 1) if batch_size % divisor == 0)


def fit(trainer: Any, job: TrainJob, train: Sequence[Any], held_out: Sequence[Any]) -> Fitted:  # noqa: ANN401
    """Split the trainer's batches so that the longest fits.

    Raises:
        JobError: the weights are to be sharded, and are not yet.
        TrainingError: one example alone does not fit.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise JobError("probe_memory can't try what FSDP or DeepSpeed will shard: set probe_memory: false.")
    args = trainer.args
    if args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
    probe = Probe(trainer, train, held_out, state_bytes=_optimizer_bytes(trainer.model, job))
    fitted = fitting(args.per_device_train_batch_size, args.gradient_accumulation_steps, probe)
    size = _smallest(fitted.batch_size)
    accumulation = args.gradient_accumulation_steps * args.per_device_train_batch_size // size
    args.per_device_train_batch_size = args.per_device_eval_batch_size = size
    args.gradient_accumulation_steps = accumulation
    trainer._train_batch_size = args.train_batch_size  # noqa: SLF001  — as its own search for a batch size does
    return replace(fitted, batch_size=size, gradient_accumulation=accumulation)


class Probe:
    """Tries batches of a trainer's longest rows, in training and in evaluation."""

    def __init__(
        self,
        trainer: Any,  # noqa: ANN401
        train: Sequence[Any],
        held_out: Sequence[Any],
        *,
        state_bytes: int,
    ) -> None:
        self._trainer = trainer
        self._train, self._held_out = _longest_first(train), _longest_first(held_out)
        self._state_bytes = state_bytes
        self._peaks: dict[int, int] = {}

    def __call__(self, batch_size: int) -> Tried:
        """Raises nothing when the memory runs out: then it does not fit."""
        limit = int(MARGIN * held_memory.limit_bytes())
        expected = 0 if torch.cuda.is_available() else self._expected(batch_size)
        if expected > limit:
            return Tried(fits=False, peak_bytes=expected, limit_bytes=limit)
        peak = self._measured(batch_size)
        return Tried(fits=peak is not None and peak <= limit, peak_bytes=peak or limit, limit_bytes=limit)

    def _expected(self, batch_size: int) -> int:
        """A line through what one and two examples take; 0 for those, and where they don't fit either."""
        if batch_size <= 2:  # noqa: PLR2004
            return 0
        one, two = self._measured(1), self._measured(2)
        if one is None or two is None:
            return 0
        return one + (batch_size - 1) * max(0, two - one)

    def _measured(self, batch_size: int) -> int | None:
        """The peak; None: the memory ran out."""
        if batch_size not in self._peaks:
            peak = self._try(batch_size)
            if peak is None:
                return None
            self._peaks[batch_size] = peak
        return self._peaks[batch_size]

    def _try(self, batch_size: int) -> int | None:
        held_memory.forget_peak()
        try:
            with untouched_randomness():
                self._go_through(batch_size)
        except torch.OutOfMemoryError:
            return None
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):  # the CPU allocator's way to say it
                raise
            return None
        finally:
            self._trainer.model.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
        return held_memory.peak_bytes()

    def _go_through(self, batch_size: int) -> None:
        state = torch.ones(self._state_bytes, dtype=torch.uint8, device=self._trainer.args.device)
        collate = self._trainer.data_collator
        was_training = self._trainer.model.training
        try:
            self._trainer.try_batch(collate(self._train[:batch_size]))
            if self._held_out:
                self._trainer.try_evaluation(collate(self._held_out[:batch_size]))
        finally:
            self._trainer.model.train(was_training)
        del state


def _optimizer_bytes(model: Any, job: TrainJob) -> int:  # noqa: ANN401
    """What Adam's two moments will take: they are there from the first step on."""
    bytes_a_parameter = 2 if job.optimizer.endswith("8bit") else 8
    trained: int = sum(each.numel() for each in model.parameters() if each.requires_grad)
    return bytes_a_parameter * trained


def _smallest(batch_size: int) -> int:
    """Over all processes of the run: they must split alike."""
    if not torch.distributed.is_initialized():
        return batch_size
    asked = torch.tensor(batch_size, device="cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MIN)
    return int(asked.item())


def _longest_first(rows: Sequence[Any]) -> list[Any]:
    return sorted(rows, key=lambda row: -len(row["input_ids"]))


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
