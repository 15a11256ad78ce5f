"""A task, carried out and saved: in this process, or in several."""

from pathlib import Path

from trainer.recipes.launch import launch
from trainer.recipes.spread import Spread
from trainer.recipes.task import Task
from trainer.recipes.task_files import Outcome


def carry_out(task: Task, *, out: Path, base_name: str, spread: Spread | None = None, workers: Path) -> Outcome:
    """Train, and write what was trained into the folder `out`: an adapter as PEFT saves it, or a whole checkpoint.

    `spread` says over which processes; None: in this one. They work in the folder `workers`, made anew.

    Raises:
        JobError, TrainingError, RunError, Interrupted: as the recipe and `saving` do; `out` is then not whole.
    """
    if spread is not None:
        return launch(task, spread, out=out, base_name=base_name, folder=workers)
    from trainer.recipes.alone import train_and_save  # noqa: PLC0415  — heavy, and of no use to who launches

    return train_and_save(task, out=out, base_name=base_name)
