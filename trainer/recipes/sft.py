"""Supervised fine-tuning: the result learns to answer as the examples do.

Knows nothing of run folders' layout, registries or terminals.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils.logging import disable_progress_bar

from trainer.recipes import memory_probe, resuming
from trainer.recipes.arguments import arguments
from trainer.recipes.base_model import load_base
from trainer.recipes.cpu_head import CpuSFTTrainer, GpuSFTTrainer
from trainer.recipes.onlookers import callbacks, watch_over
from trainer.recipes.optimizers import optimizer_for
from trainer.recipes.packing import Flattened, Padded, as_packed_rows, as_rows
from trainer.recipes.peft_methods import peft_config, undo_casts
from trainer.recipes.segments import attending_by_segments, contamination, is_clean, require_no_contamination
from trainer.recipes.stopping import Stop
from trainer.recipes.task import Task, Trained
from trainer.recipes.trackers import tensorboard
from trainer.recipes.trainable import require_frozen_base
from trainer.step import Packed
from trainer.supervision import Example

Rows = list[dict[str, list[int]]]


def train(task: Task) -> Trained:
    """Carry the task out; deterministic for the same job, examples, base and machine.

    Raises:
        JobError: the job asks for what is not there; nothing was made.
        TrainingError: it can't go on.
        Interrupted: a signal came; `resume_from` the last checkpoint goes on as if it had not.
    """
    disable_progress_bar()
    job = task.job
    train, held_out = _rows(task, task.train), _rows(task, task.held_out)
    resumed = resuming.require_whole(task.resume_from)

    with tensorboard(job.trackers, task.trackers, after_step=resumed.step if resumed else 0) as curves:
        # What is trained: the base as the method holds it, what is put on it, and who looks on
        watch = watch_over(task, curves, resumed)
        stop = Stop()
        trainer, precision = _trainer(task, train, held_out, callbacks(task, watch, stop))
        with _unpadded(task, trainer, train):
            # Before the first step: do packed examples see each other, and does the longest batch fit?
            if job.packing:
                watch.tell(_packed(task, trainer, train))
            if job.probe_memory or (job.probe_memory is None and torch.cuda.is_available()):
                watch.tell(memory_probe.fit(trainer, job, train, held_out))

            # The training
            with stop.at_signals():
                resuming.train(trainer, task.resume_from)
            stop.leave_if_asked(trainer.state)

            # The held-out loss of what is given back
            evaluation = resuming.final_evaluation(trainer, watch.evaluations) if held_out else None
    return Trained(
        model=trainer.model,
        precision=precision,
        last=watch.last,
        held_out_loss=evaluation.held_out_loss if evaluation else None,
        kept_step=evaluation.step if evaluation else watch.last.step,
    )


def _rows(task: Task, examples: Sequence[Any]) -> Rows:
    if not task.job.packing:
        return as_rows(examples)
    return as_packed_rows(examples, row_length=task.job.max_length)


def _trainer(
    task: Task, train: Rows, held_out: Rows, onlookers: Sequence[TrainerCallback]
) -> tuple[CpuSFTTrainer | GpuSFTTrainer, str]:
    """TRL's trainer on the job's base. The examples are tokens and labels already, so TRL prepares nothing."""
    job = task.job
    # First of all: they choose this process's device, and how weights are to be read.
    args = arguments(task, row_count=len(train), batch_size=resuming.batch_size(task.resume_from, job))
    model, precision = load_base(job, task.base_folder)
    tokenizer = AutoTokenizer.from_pretrained(task.base_folder, trust_remote_code=False, local_files_only=True)
    pad_token = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    trainer_class = GpuSFTTrainer if torch.cuda.is_available() else CpuSFTTrainer
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(held_out) if held_out else None,
        data_collator=Flattened() if job.packing else Padded(pad_token or 0),
        processing_class=tokenizer,
        peft_config=peft_config(job, example_count=len(task.train)),
        callbacks=list(onlookers),
    )
    trainer.remove_callback(PrinterCallback)
    undo_casts(trainer.model)
    trainer.optimizer = optimizer_for(job, trainer.model, args)
    require_frozen_base(trainer.model, job)
    return trainer, precision


@contextmanager
def _unpadded(task: Task, trainer: CpuSFTTrainer | GpuSFTTrainer, rows: Rows) -> Iterator[None]:
    """On the CPU a batch is one row without padding, and each example is attended to by itself.

    A base that lets examples in a row see each other keeps its padding; packing is refused on it. GPUs have kernels
    for the mask of a packed row.
    """
    if torch.cuda.is_available():
        yield
        return
    with attending_by_segments(trainer.model) as by_segments:
        if task.job.packing or (by_segments and _stay_apart(trainer, rows)):
            trainer.data_collator = Flattened()
            trainer.args.include_num_input_tokens_seen = "all"  # all of them are real
            yield
            return
    yield


def _stay_apart(trainer: CpuSFTTrainer, rows: Rows) -> bool:
    """Whether two examples, the shortest, come to the same in one row as each by itself."""
    shortest = sorted(rows, key=lambda row: len(row["input_ids"]))[:2]
    pair = [Example(row["input_ids"], row["labels"]) for row in shortest]
    if len(pair) == 1:
        return False  # nobody knows, and there is nothing to pad
    try:
        return is_clean(contamination(trainer.model, pair, Flattened()), trainer.model.dtype)
    except (TypeError, ValueError):  # an architecture that takes no positions
        return False


def _packed(task: Task, trainer: CpuSFTTrainer | GpuSFTTrainer, rows: Rows) -> Packed:
    """Test the fullest of the rows in which examples meet."""
    shared = [row for row in rows if len(row["seq_lengths"]) > 1]
    difference = 0.0
    if shared:
        row = max(shared, key=lambda row: (len(row["seq_lengths"]), len(row["input_ids"])))
        difference = contamination(trainer.model, _examples(row), trainer.data_collator)
        require_no_contamination(difference, trainer.model.dtype)
    tokens = sum(len(row["input_ids"]) for row in rows)
    return Packed(
        step=0,
        examples=len(task.train),
        rows=len(rows),
        filled=round(tokens / (len(rows) * task.job.max_length), 4),
        difference=difference,
    )


def _examples(row: dict[str, list[int]]) -> list[Example]:
    ends = torch.tensor([0, *row["seq_lengths"]]).cumsum(0).tolist()
    return [Example(row["input_ids"][start:end], row["labels"][start:end]) for start, end in pairwise(ends)]
