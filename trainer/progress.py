"""What a person sees while the trainer works: a line for each step of the way with its time, a bar for the training.

Goes to stderr, so that stdout holds the result alone. Without a terminal the bar becomes a line every few seconds.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.step import OnStep, Step

LINE_SECONDS = 5.0


class Narrator:
    """Tells what happens."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, sentence: str) -> None:
        """One line."""
        self._console.print(f"  {sentence}", markup=False)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """A line when the block is done, with how long it took."""
        started = time.monotonic()
        yield
        self.say(f"{what}: {time.monotonic() - started:.1f} s")

    @contextmanager
    def training(self) -> Iterator[OnStep]:
        """Shows the steps it is given."""
        if not self._console.is_terminal:
            yield _Lines(self)
            return
        columns = (
            TextColumn("  training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f} · {task.fields[speed]:.0f} tokens/s · ETA"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task("training", total=None, loss=float("nan"), speed=0.0)
            yield lambda step: bar.update(
                task, completed=step.step, total=step.total_steps, loss=step.loss, speed=_mean_speed(step)
            )


class _Lines:
    """For logs: the first step, the last, and one every few seconds between."""

    def __init__(self, narrator: Narrator) -> None:
        self._narrator = narrator
        self._said = float("-inf")

    def __call__(self, step: Step) -> None:
        now = time.monotonic()
        if now - self._said < LINE_SECONDS and step.step != step.total_steps:
            return
        self._said = now
        left = (step.total_steps - step.step) * step.elapsed_seconds / step.step
        self._narrator.say(
            f"training: step {step.step}/{step.total_steps} · loss {step.loss:.3f} · "
            f"{_mean_speed(step):.0f} tokens/s · ETA {left:.0f} s"
        )


def _mean_speed(step: Step) -> float:
    return step.tokens / max(step.elapsed_seconds, 1e-9)
