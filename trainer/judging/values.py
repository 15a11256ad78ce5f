"""What is judged and what is asked of it: plain values. Knows no libraries."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from trainer.dataset import Row
from trainer.job_sections import Judge
from trainer.judging.abilities import Abilities
from trainer.supervision import AnyExample, Example, PreferenceExample


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two that are judged beside each other: a model's folder, perhaps with an adapter's on top."""

    label: str
    """As the report shows it: no path."""
    model: Path
    adapter: Path | None = None
    fingerprint: str | None = None
    """The base's, if `model` is a base as it is and nothing else: what is measured of it is kept for the next time."""


@dataclass(frozen=True, slots=True)
class Task:
    """The held-out examples, and by what the answers to them are measured. `Checked` has both lists."""

    held_out: tuple[AnyExample, ...] = ()
    """In tokens, as they are trained on."""
    rows: tuple[Row, ...] = ()
    """The same in the same places, as they were read."""
    metrics: tuple[str, ...] = ()
    """Of the answers, and DPO's `preference`; the loss is always measured."""
    schema: Mapping[str, Any] | None = None
    """What every answer satisfies, for the metric json_schema."""
    beta: float = 0.1
    """DPO's."""

    @property
    def examples(self) -> tuple[Example, ...]:
        """Those that say what is to be said."""
        return tuple(each for each in self.held_out if isinstance(each, Example))

    @property
    def preferences(self) -> tuple[PreferenceExample, ...]:
        """Those that say which of two answers is wanted."""
        return tuple(each for each in self.held_out if isinstance(each, PreferenceExample))


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is asked for: these two sides, on these examples, by these rules."""

    base: Side
    result: Side
    task: Task
    rules: Judge
    abilities: Abilities | None
    """The regression set; None: not measured."""
    precision: str = "auto"
    """bfloat16 or float32; auto: what the hardware is faster in."""
    cache: Path | None = None
    """The folder where what was measured of a base is kept; None: measured anew."""
    beside: Path = Path()
    """Where the user's command runs."""
    curve: Path | None = None
    """The run's metrics.jsonl, for the plot."""


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out prompt and the answer that its row has."""

    line: int
    prompt: str
    prompt_ids: tuple[int, ...]
    expected: str
    expected_tokens: int


class Stored(BaseModel):
    """Measured, and written as JSON."""

    model_config = ConfigDict(frozen=True)


class Likelihood(Stored):
    """How likely a model finds the learned tokens of one text."""

    log_probability: float
    tokens: int

    @property
    def per_token(self) -> float:
        """Their mean; of no tokens, 0."""
        return self.log_probability / max(self.tokens, 1)


class Answer(Stored):
    """What a model said."""

    text: str
    has_stopped: bool
    """By itself, before its tokens ran out."""


class Measured(Stored):
    """All that was seen of one side, one value an example, in their order."""

    examples: tuple[Likelihood, ...] = ()
    chosen: tuple[Likelihood, ...] = ()
    rejected: tuple[Likelihood, ...] = ()
    answers: tuple[Answer, ...] = ()
    abilities: tuple[bool, ...] = ()
    """Whether each item of the regression set was answered rightly."""
