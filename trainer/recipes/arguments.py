"""A job as TRL's arguments: what is left to it, and what is switched off."""

import math
from typing import Any, Final

import torch
from trl import SFTConfig

from trainer.errors import JobError
from trainer.job import TrainJob
from trainer.recipes.base_model import autocasts, precision_of
from trainer.recipes.exact import LOSS
from trainer.recipes.optimizers import optim_name
from trainer.recipes.task import Task
from trainer.recipes.trackers import services
from trainer.settings import place_in_run

EVALUATIONS: Final = 10
"""Of a run that stops early, unless the job says how often."""


def arguments(task: Task, *, row_count: int, batch_size: int | None = None) -> SFTConfig:
    """The job as TRL is told it; `batch_size` is how many of a step's examples go through at once, if not the job's."""
    return SFTConfig(
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,  # lengths were checked; TRL's default of 1024 would cut in silence
        **shared(task, row_count=row_count, batch_size=batch_size),
    )


def shared(task: Task, *, row_count: int, batch_size: int | None = None) -> dict[str, Any]:
    """What is told alike to all of TRL's trainers."""
    job = task.job
    has_gpu = torch.cuda.is_available()
    checkpointing = has_gpu if job.gradient_checkpointing is None else job.gradient_checkpointing
    at_once = batch_size or job.batch_size
    return dict(
        output_dir=str(task.checkpoints),
        # hardware
        use_cpu=not has_gpu,
        bf16=autocasts(job, precision_of(job)),
        gradient_checkpointing=checkpointing,
        dataloader_pin_memory=has_gpu,
        # Of an adapter all parts learn in each step. DDP need not look; and if it did, checkpointing would fail.
        ddp_find_unused_parameters=False if job.method.is_adapter else None,
        # the job
        learning_rate=job.peak_learning_rate,
        lr_scheduler_type=job.schedule,
        warmup_steps=job.warmup,  # below 1 it is a share
        num_train_epochs=job.epochs,
        max_steps=job.max_steps or -1,
        per_device_train_batch_size=at_once,
        per_device_eval_batch_size=at_once,
        gradient_accumulation_steps=job.gradient_accumulation * (job.batch_size // at_once),
        train_sampling_strategy="group_by_length" if job.group_by_length else "random",
        optim=optim_name(job),
        weight_decay=job.weight_decay,
        max_grad_norm=job.max_grad_norm,
        seed=job.seed,
        data_seed=job.seed,
        # what is kept and said; Keep removes the old ones, when the new one is whole
        **_evaluations(task, total_steps(job, row_count)),
        save_total_limit=None,
        restore_callback_states_from_checkpoint=True,  # early stopping's patience
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would put the mean of earlier losses in the place of NaN
        include_num_input_tokens_seen="all" if job.packing else "non_padding",  # a packed row has no padding
        disable_tqdm=True,
        report_to=services(job.trackers) or "none",
        run_name=task.checkpoints.parent.name,
        project="lorikeet",
    )


def total_steps(job: TrainJob, row_count: int) -> int:
    """Optimizer steps of the job on so many rows, as the trainer counts them: an epoch ends with a shorter one."""
    if job.max_steps is not None:
        return job.max_steps
    an_epoch = max(1, math.ceil(row_count / step_examples(job)))
    return math.ceil(job.epochs * an_epoch)


def step_examples(job: TrainJob) -> int:
    """How many examples a step is made of; of a run's processes each has its share of the job (`spread.share_out`)."""
    return job.batch_size * job.gradient_accumulation * place_in_run()[1]


def _evaluations(task: Task, steps: int) -> dict[str, Any]:
    """When the held-out loss is taken during the training, and what hangs on it."""
    job = task.job
    stops_early = job.early_stopping is not None
    if (stops_early or job.eval_steps is not None) and not task.held_out:
        raise JobError("early_stopping and eval_steps need held-out examples: set held_out to a share or a file.")
    every = job.eval_steps or (max(1, steps // EVALUATIONS) if stops_early else None)
    if every is None:
        return {"save_strategy": "steps", "save_steps": job.checkpoint_steps, "eval_strategy": "no"}
    return {
        "save_strategy": "steps",
        "save_steps": every if stops_early else job.checkpoint_steps,  # the best must be there to be kept
        "eval_strategy": "steps",
        "eval_steps": every,
        "load_best_model_at_end": stops_early,
        "metric_for_best_model": LOSS if stops_early else None,
        "greater_is_better": False if stops_early else None,
        "prediction_loss_only": True,
    }
