"""What a calibrated scheme looks at: rows of a data set as the model reads them, cut to a length. No labels."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trainer.dataset.read import read_rows
from trainer.dataset.values import Conversation, Dataset, PlainText, Row
from trainer.errors import DatasetError
from trainer.job import TrainJob
from trainer.supervision import Example, TemplateRefusal, Tokenizer, examples_of

SHIPPED: Final = Path(__file__).with_name("calibration.jsonl")
"""32 short conversations, of what an assistant is asked most: questions, code, JSON, sums, mails, in five languages."""
SAMPLE_TOKENS: Final = 512
_MEASURED: Final = 8
"""The last of those that ship, which no scheme looks at: what a model was fitted to would flatter it."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Token ids, and where they are from."""

    name: str
    fingerprint: str
    samples: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """In all samples."""
        return sum(map(len, self.samples))


def read_calibration(source: str | None, count: int, tokenizer: Tokenizer) -> Calibration:
    """The first `count` rows of a file (or of hub:OWNER/NAME) that the template takes; None: of 24 that ship.

    Raises:
        DatasetError: it can't be read, or no row of it can be used.
        JobError: chats, and the model has no chat template.
    """
    path = str(SHIPPED) if source is None else source
    dataset = read_rows(path, Path.cwd(), TrainJob(base="any", data=path)).dataset
    rows = dataset.rows[:count] if source is not None else dataset.rows[:-_MEASURED][:count]
    samples = _samples(tokenizer, dataset, rows)
    if not samples:
        raise DatasetError(f"{dataset.name}: holds no row that can be used for calibration.")
    return Calibration("shipped" if source is None else dataset.name, dataset.fingerprint, samples)


def texts_to_measure(tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """The shipped rows that `read_calibration` leaves out, as token ids."""
    dataset = read_rows(str(SHIPPED), Path.cwd(), TrainJob(base="any", data=str(SHIPPED))).dataset
    return _samples(tokenizer, dataset, dataset.rows[-_MEASURED:])


def _samples(tokenizer: Tokenizer, dataset: Dataset, rows: tuple[Row, ...]) -> tuple[tuple[int, ...], ...]:
    """Those that ship are chats; for a model without a chat template, their text is taken."""
    if dataset.name == SHIPPED.name and not tokenizer.chat_template:
        rows = tuple(map(_as_text, rows))
    return tuple(tuple(ids[:SAMPLE_TOKENS]) for ids in _token_ids(tokenizer, replace(dataset, rows=rows)))


def _token_ids(tokenizer: Tokenizer, dataset: Dataset) -> Iterator[list[int]]:
    for example in examples_of(tokenizer, dataset.rows):
        if isinstance(example, TemplateRefusal):
            continue
        ids = example.input_ids if isinstance(example, Example) else example.prompt_ids + example.chosen_ids
        if ids:
            yield ids


def _as_text(row: Row) -> Row:
    """For a model that has no chat template."""
    if not isinstance(row, Conversation):
        return row
    return PlainText(row.line, "\n".join(message.content for message in row.messages))
