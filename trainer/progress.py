"""What a person sees while the trainer works: a line for each step of the way with its time, a bar for the training.

Goes to stderr, so that stdout holds the result alone. Without a terminal the bar becomes a line every few seconds.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import assert_never

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.step import Advice, Checkpoint, Evaluation, Fitted, OnTold, Packed, Step, Told

LINE_SECONDS = 5.0


def printable(text: str) -> str:
    """Without what a terminal would obey rather than show: strangers write data, and models answers."""
    return "".join(character if character.isprintable() or character in "\n\t" else "�" for character in text)


class Narrator:
    """Tells what happens."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, sentence: str) -> None:
        """One line."""
        self._console.print(f"  {printable(sentence)}", markup=False)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """A line when the block is done, with how long it took."""
        started = time.monotonic()
        yield
        self.say(f"{what}: {time.monotonic() - started:.1f} s")

    @contextmanager
    def training(self) -> Iterator[OnTold]:
        """Shows what a training tells."""
        if not self._console.is_terminal:
            yield _Lines(self)
            return
        columns = (
            TextColumn("  training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]} · ETA"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as bar:
            yield _Bar(self, bar)


class _Bar:
    """For a terminal: steps move the bar, all else is a line above it."""

    def __init__(self, narrator: Narrator, bar: Progress) -> None:
        self._narrator = narrator
        self._bar = bar
        self._task = bar.add_task("training", total=None, figures="")

    def __call__(self, told: Told) -> None:
        if isinstance(told, Step):
            self._bar.update(self._task, completed=told.step, total=told.total_steps, figures=_figures(told))
        elif sentence := _sentence(told):
            self._narrator.say(sentence)


class _Lines:
    """For logs: the first step, the last, and one every few seconds between; all else as it comes."""

    def __init__(self, narrator: Narrator) -> None:
        self._narrator = narrator
        self._said = float("-inf")
        self._first: Step | None = None

    def __call__(self, told: Told) -> None:
        if not isinstance(told, Step):
            if sentence := _sentence(told):
                self._narrator.say(sentence)
            return
        self._first = self._first or told
        now = time.monotonic()
        if now - self._said < LINE_SECONDS and told.step != told.total_steps:
            return
        self._said = now
        self._narrator.say(
            f"training: step {told.step}/{told.total_steps} · {_figures(told)} · ETA {_left(self._first, told):.0f} s"
        )


def _figures(step: Step) -> str:
    speed = step.tokens / max(step.elapsed_seconds, 1e-9)
    return f"loss {step.loss:.3f} · {speed:.0f} tokens/s · {_gigabytes(step.memory_bytes)}"


def _left(first: Step, now: Step) -> float:
    """Seconds: by all steps of this attempt, the first of which shares its time with nothing to measure it by."""
    if now.step == first.step:
        return (now.total_steps - now.step) * now.elapsed_seconds / now.step
    a_step = (now.elapsed_seconds - first.elapsed_seconds) / (now.step - first.step)
    return (now.total_steps - now.step) * a_step


def _sentence(told: Evaluation | Checkpoint | Advice | Fitted | Packed) -> str | None:
    """None: nothing that a person need see."""
    match told:
        case Evaluation():
            return f"step {told.step}: held-out loss {told.held_out_loss:.4f}{' (best)' if told.is_best else ''}"
        case Advice():
            return f"advice at step {told.step}: {told.sentence}"
        case Fitted():
            return (
                f"the longest batch takes {_gigabytes(told.peak_bytes)} of {_gigabytes(told.limit_bytes)}: "
                f"{told.batch_size} examples at once, {told.gradient_accumulation} times a step"
            )
        case Packed():
            return f"{told.examples} examples packed into {told.rows} rows, {told.filled:.0%} full; none sees another"
        case Checkpoint():
            return None
        case _:
            assert_never(told)


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
