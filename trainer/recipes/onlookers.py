"""Who looks on while a recipe trains: what tells of it, what writes into checkpoints, what ends it."""

from collections.abc import Sequence

from transformers import EarlyStoppingCallback, TrainerCallback

from trainer.recipes.callbacks import Keep, Watch
from trainer.recipes.peft_methods import callbacks_for
from trainer.recipes.stopping import Stop
from trainer.recipes.task import Task
from trainer.recipes.watchdog import Remedies, Watchdog
from trainer.step import OnTold
from trainer.whole_checkpoint import WholeCheckpoint


def watch_over(task: Task, curves: Sequence[OnTold], resumed: WholeCheckpoint | None) -> Watch:
    """Tells the task's listeners and the curves, with advice in the job's own figures."""
    job = task.job
    remedies = Remedies(
        is_adapter=job.method.is_adapter, learning_rate=job.peak_learning_rate, alpha=job.alpha, rank=job.rank
    )
    return Watch((*task.listeners, *curves), watchdog=Watchdog(remedies), resumed=resumed)


def callbacks(task: Task, watch: Watch, stop: Stop) -> list[TrainerCallback]:
    """In this order: what writes into a checkpoint, what seals it, what ends the training."""
    job = task.job
    stops_early = job.early_stopping is not None
    keep = Keep(watch, every_steps=job.checkpoint_steps, keeps_best=stops_early)
    patience = [EarlyStoppingCallback(early_stopping_patience=job.early_stopping)] if stops_early else []
    return [watch, *patience, *callbacks_for(job, task.resume_from), keep, stop]
