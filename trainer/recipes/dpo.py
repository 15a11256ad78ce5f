"""Direct preference optimisation: of two answers to a prompt, the result prefers the one that was chosen.

What it is compared with, the reference, is the model as it began: an adapter's base with the adapter off. Knows nothing
of run folders' layout, registries or terminals.
"""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils.logging import disable_progress_bar
from trl import DPOConfig, DPOTrainer

from trainer.recipes import resuming
from trainer.recipes.arguments import shared, step_examples, total_steps
from trainer.recipes.base_model import load_base
from trainer.recipes.exact import RepeatableTrainer
from trainer.recipes.onlookers import callbacks, watch_over
from trainer.recipes.optimizers import optimizer_for
from trainer.recipes.peft_methods import peft_config, undo_casts
from trainer.recipes.stopping import Stop
from trainer.recipes.task import Task, Trained
from trainer.recipes.trackers import tensorboard
from trainer.recipes.trainable import require_frozen_base


class PairTrainer(RepeatableTrainer, DPOTrainer):  # type: ignore[misc]  # TRL ships no types that strict mode takes
    """DPOTrainer on pairs that are tokens already."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        """As it is: TRL would render and tokenize text, otherwise than it is served."""
        return dataset


def train(task: Task) -> Trained:
    """Carry the task out; deterministic for the same job, pairs, base and machine.

    Raises:
        JobError: the job asks for what is not there; nothing was made.
        TrainingError: it can't go on.
        Interrupted: a signal came; `resume_from` the last checkpoint goes on as if it had not.
    """
    disable_progress_bar()
    job = task.job
    resumed = resuming.require_whole(task.resume_from)

    with tensorboard(job.trackers, task.trackers, after_step=resumed.step if resumed else 0) as curves:
        # What is trained: the base as the method holds it, what is put on it, and who looks on
        watch = watch_over(task, curves, resumed)
        stop = Stop()
        trainer, precision = _trainer(task, callbacks(task, watch, stop))

        # The training
        with stop.at_signals():
            resuming.train(trainer, task.resume_from)
        stop.leave_if_asked(trainer.state)

        # The held-out loss of what is given back
        evaluation = resuming.final_evaluation(trainer, watch.evaluations) if task.held_out else None
    return Trained(
        model=trainer.model,
        precision=precision,
        last=watch.last,
        held_out_loss=evaluation.held_out_loss if evaluation else None,
        kept_step=evaluation.step if evaluation else watch.last.step,
    )


def _trainer(task: Task, onlookers: Sequence[TrainerCallback]) -> tuple[PairTrainer, str]:
    job = task.job
    # First of all: they choose this process's device, and how weights are to be read.
    args = DPOConfig(
        beta=job.beta,
        max_length=None,  # lengths were checked; TRL's default of 1024 would cut in silence
        precompute_ref_log_probs=_asks_once(task),
        **shared(task, row_count=len(task.train), batch_size=resuming.batch_size(task.resume_from, job)),
    )
    model, precision = load_base(job, task.base_folder)
    trainer = PairTrainer(
        model=model,
        args=args,
        train_dataset=_rows(task.train),
        eval_dataset=_rows(task.held_out) if task.held_out else None,
        processing_class=AutoTokenizer.from_pretrained(
            task.base_folder, trust_remote_code=False, local_files_only=True
        ),
        peft_config=peft_config(job, example_count=len(task.train)),
        callbacks=list(onlookers),
    )
    trainer.remove_callback(PrinterCallback)
    undo_casts(trainer.model)
    trainer.optimizer = optimizer_for(job, trainer.model, args)
    require_frozen_base(trainer.model, job)
    return trainer, precision


def _rows(pairs: Sequence[Any]) -> Dataset:
    return Dataset.from_list(
        [
            {"prompt_ids": pair.prompt_ids, "chosen_ids": pair.chosen_ids, "rejected_ids": pair.rejected_ids}
            for pair in pairs
        ]
    )


def _asks_once(task: Task) -> bool:
    """Whether the reference is asked for all pairs before the training, rather than in each step.

    Each asking is a forward: once for all is cheaper when pairs come again. Where all weights are trained the reference
    would be a second model in memory.
    """
    job = task.job
    if not job.method.is_adapter:
        return True
    return total_steps(job, len(task.train)) * step_examples(job) > len(task.train)
