"""One process's part of a training: train, then save with the others, if there are any."""

from pathlib import Path

from trainer.recipes import dpo, saving, sft
from trainer.recipes.task import Task
from trainer.recipes.task_files import Outcome


def train_and_save(task: Task, *, out: Path, base_name: str, writes: bool = True) -> Outcome:
    """Carry the task out by the recipe of its objective; of several processes, one writes."""
    trained = dpo.train(task) if task.job.objective == "dpo" else sft.train(task)
    if task.job.method.is_adapter:
        saving.save_adapter(trained.model, out, base_name=base_name, writes=writes)
    else:
        saving.save_model(trained.model, out, base_folder=task.base_folder, writes=writes)
    return Outcome(trained.precision, trained.last, trained.held_out_loss, trained.kept_step)
