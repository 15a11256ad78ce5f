"""Where a training's curves go besides metrics.jsonl: TensorBoard's files, or a service by its name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from trainer.errors import JobError
from trainer.settings import place_in_run
from trainer.step import Evaluation, OnTold, Step, Told


def services(trackers: Sequence[str]) -> list[str]:
    """Those that transformers reports to by itself.

    Raises:
        JobError: the package of one is not installed.
    """
    for name in trackers:
        if find_spec(name) is None:
            raise JobError(f"trackers: {name} is not installed here: `python -m pip install {name}`, or leave it out.")
    return [name for name in trackers if name != "tensorboard"]


@contextmanager
def tensorboard(trackers: Sequence[str], folder: Path, *, after_step: int) -> Iterator[Sequence[OnTold]]:
    """A listener that writes TensorBoard's files into `folder`, if it is among the trackers: one for all processes.

    Of an earlier attempt, what lies after `after_step` is hidden.
    """
    rank, _ = place_in_run()
    if "tensorboard" not in trackers or rank != 0:
        yield ()
        return
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  — a second's work, and not always wanted

    with SummaryWriter(log_dir=str(folder), purge_step=after_step + 1) as writer:
        yield (_Curves(writer),)


class _Curves:
    def __init__(self, writer: object) -> None:
        self._writer = writer

    def __call__(self, told: Told) -> None:
        for name, value in _scalars(told).items():
            self._writer.add_scalar(name, value, told.step)  # type: ignore[attr-defined]  # ships no types


def _scalars(told: Told) -> dict[str, float]:
    match told:
        case Step():
            return {
                "loss": told.loss,
                "learning_rate": told.learning_rate,
                "gradient_norm": told.gradient_norm,
                "tokens_per_second": told.tokens_per_second,
                "memory_bytes": told.memory_bytes,
            }
        case Evaluation():
            return {"held_out_loss": told.held_out_loss}
        case _:
            return {}
