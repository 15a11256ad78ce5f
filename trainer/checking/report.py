"""What was found in the data and what is trained on, as one value: data.json. Does not know how it looks."""

import statistics
from collections.abc import Sequence
from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field

from trainer.checking.tokens import Learnable
from trainer.dataset import Dataset, Finding, Severity
from trainer.supervision import IGNORED, Example, Tokenizer

SAMPLE_CHARACTERS = 4000
"""So much of a stretch of a sample is shown; the middle of a longer one is left out."""


class Value(BaseModel):
    """Frozen; what a later version wrote is kept."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Lengths(Value):
    """How long rows are, in tokens."""

    total: int
    shortest: int
    median: int
    longest_5_percent: int
    """So long or longer is one row in twenty."""
    longest: int


class Stretch(Value):
    """A part of a row's text, decoded from its tokens."""

    text: str
    is_learned: bool


class Sample(Value):
    """A row as the model reads it."""

    line: int
    stretches: tuple[Stretch, ...]


class Side(Value):
    """The rows to train on, or those held out."""

    name: str
    read_rows: int
    rows: int
    """Without those that were left out."""
    dropped: dict[str, int]
    """Why rows were left out → how many."""
    read_fingerprint: str
    fingerprint: str
    """Of the rows that are left."""
    lengths: Lengths | None = None
    """None without a tokenizer, and without rows."""
    learned: Lengths | None = None
    """Of what is learned in each row."""

    @property
    def supervised_share(self) -> float:
        """How much of the tokens is learned."""
        return self.learned.total / self.lengths.total if self.learned and self.lengths else 0.0


class DataReport(Value):
    """What `lorikeet train check` shows, and data.json holds."""

    source_fingerprint: str
    """Of the bytes that were read."""
    shape: str
    max_length: int
    train: Side
    held_out: Side
    findings: tuple[Finding, ...]
    samples: tuple[Sample, ...] = ()
    train_lengths: tuple[int, ...] = Field(default=(), exclude=True)
    """In tokens, before anything was cut; for the plots."""
    held_out_lengths: tuple[int, ...] = Field(default=(), exclude=True)
    learned_lengths: tuple[int, ...] = Field(default=(), exclude=True)

    @property
    def is_sound(self) -> bool:
        """Whether it can be trained on."""
        return not any(finding.severity is Severity.ERROR for finding in self.findings)


def side_of(read: Dataset, left: Dataset, dropped: dict[str, int], learnable: Sequence[Learnable]) -> Side:
    """What is to be said of one side."""
    return Side(
        name=read.name,
        read_rows=len(read.rows),
        rows=len(left.rows),
        dropped=dropped,
        read_fingerprint=read.fingerprint,
        fingerprint=left.fingerprint,
        lengths=lengths_of([found.example.length for found in learnable]),
        learned=lengths_of([found.example.learned for found in learnable]),
    )


def lengths_of(lengths: Sequence[int]) -> Lengths | None:
    """None of none."""
    if not lengths:
        return None
    ordered = sorted(lengths)
    return Lengths(
        total=sum(ordered),
        shortest=ordered[0],
        median=int(statistics.median(ordered)),
        longest_5_percent=ordered[len(ordered) * 95 // 100],
        longest=ordered[-1],
    )


def samples_of(learnable: Sequence[Learnable], tokenizer: Tokenizer) -> tuple[Sample, ...]:
    """Three rows: the first, one of middling length, and the longest."""
    if not learnable:
        return ()
    ordered = sorted(range(len(learnable)), key=lambda place: learnable[place].example.length)
    chosen = dict.fromkeys((0, ordered[len(ordered) // 2], ordered[-1]))
    return tuple(
        Sample(line=learnable[place].row.line, stretches=_stretches(learnable[place], tokenizer)) for place in chosen
    )


def _stretches(found: Learnable, tokenizer: Tokenizer) -> tuple[Stretch, ...]:
    example = found.example
    if not isinstance(example, Example):
        return (
            _stretch(tokenizer, example.prompt_ids, is_learned=False),
            _stretch(tokenizer, example.chosen_ids, is_learned=True),
            Stretch(text="\n— and not —\n", is_learned=False),
            _stretch(tokenizer, example.rejected_ids, is_learned=True),
        )
    edges = [0]
    edges += [
        place for place in range(1, example.length) if _is_learned(example, place) != _is_learned(example, place - 1)
    ]
    edges.append(example.length)
    return tuple(
        _stretch(tokenizer, example.input_ids[start:end], is_learned=_is_learned(example, start))
        for start, end in pairwise(edges)
    )


def _stretch(tokenizer: Tokenizer, tokens: list[int], *, is_learned: bool) -> Stretch:
    text = str(tokenizer.decode(tokens))
    if len(text) > SAMPLE_CHARACTERS:
        half = SAMPLE_CHARACTERS // 2
        text = f"{text[:half]} [… {len(text) - SAMPLE_CHARACTERS} characters …] {text[-half:]}"
    return Stretch(text=text, is_learned=is_learned)


def _is_learned(example: Example, place: int) -> bool:
    return example.labels[place] != IGNORED
