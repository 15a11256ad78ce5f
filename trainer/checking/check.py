"""Checks the data of a job, before a step is trained. What is found has a code; nothing is mended in silence."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.checking.answers import find_in_texts
from trainer.checking.drops import Judged
from trainer.checking.duplicates import find_conflicts, find_repeated
from trainer.checking.report import DataReport, samples_of, side_of
from trainer.checking.tokens import Learnable, find_in_tokens
from trainer.checking.watching import Watch
from trainer.dataset import (
    Completion,
    Conversation,
    Dataset,
    Finding,
    Findings,
    PlainText,
    Preference,
    Severity,
    Split,
    require_no_errors,
)
from trainer.dataset.split import side
from trainer.job import TrainJob
from trainer.progress import Narrator
from trainer.supervision import AnyExample, Tokenizer

SHAPES = {Conversation: "chats", Completion: "completions", PlainText: "plain text", Preference: "preference pairs"}


@dataclass(frozen=True, slots=True)
class Checked:
    """What is trained on, and what was found on the way to it."""

    train: list[AnyExample]
    """In tokens; of pairs, all are PreferenceExample, else all are Example. Empty without a tokenizer."""
    held_out: list[AnyExample]
    split: Split
    """The rows of the two lists, in the same places (without a tokenizer: the rows that are left)."""
    findings: tuple[Finding, ...]
    report: DataReport


def check(split: Split, job: TrainJob, tokenizer: Tokenizer | None, narrator: Narrator) -> Checked:
    """Judge all rows by the job's policies. Without a tokenizer, only by what they say.

    Raises:
        JobError: the base can't take rows of this shape, or answer_schema refers to what it does not hold.
        BaseError: the base's stop tokens can't be read.
    """
    findings, watch = Findings(), Watch(narrator)
    train, held_out = Judged(split.train, findings), Judged(split.held_out, findings)

    # What rows say
    find_repeated(train, held_out, job.checks, watch)
    for judged in (train, held_out):
        find_conflicts(judged)
        find_in_texts(judged, job, tokenizer, split.answer_schema, watch)
    _note_raw_text(split.train, tokenizer, findings)

    # What their tokens say
    sides = (train, held_out)
    learnable = [find_in_tokens(judged, job, tokenizer, watch) if tokenizer else [] for judged in sides]
    left = [side(judged.dataset, [row for _, row in judged.rows()]) for judged in sides]
    if split.train.rows and not left[0].rows:
        findings.say("all_rows_dropped", Severity.ERROR)

    found = tuple(sorted((*split.findings, *findings.gathered()), key=lambda one: list(Severity).index(one.severity)))
    report = _report(split, job, sides, left, learnable, found, tokenizer)
    examples = [[one.example for one in of_side] for of_side in learnable]
    remaining = Split(left[0], left[1], split.source_fingerprint, split.findings, split.answer_schema)
    return Checked(examples[0], examples[1], remaining, found, report)


def require_sound(checked: Checked) -> None:
    """Raise DatasetError with every finding that is an error, by code and line."""
    require_no_errors(checked.findings, checked.split.train.name)


def _note_raw_text(train: Dataset, tokenizer: Tokenizer | None, findings: Findings) -> None:
    is_raw = bool(train.rows) and isinstance(train.rows[0], Completion | PlainText)
    if is_raw and tokenizer and tokenizer.chat_template:
        findings.say("raw_text", Severity.NOTE)


def _report(
    read: Split,
    job: TrainJob,
    judged: Sequence[Judged],
    left: Sequence[Dataset],
    learnable: Sequence[Sequence[Learnable]],
    findings: tuple[Finding, ...],
    tokenizer: Tokenizer | None,
) -> DataReport:
    train, held_out = learnable
    return DataReport(
        source_fingerprint=read.source_fingerprint,
        shape=SHAPES[type(read.train.rows[0])] if read.train.rows else "nothing",
        max_length=job.max_length,
        train=side_of(read.train, left[0], dict(judged[0].dropped), train),
        held_out=side_of(read.held_out, left[1], dict(judged[1].dropped), held_out),
        findings=findings,
        samples=samples_of(train, tokenizer) if tokenizer else (),
        train_lengths=tuple(one.full_length for one in train),
        held_out_lengths=tuple(one.full_length for one in held_out),
        learned_lengths=tuple(one.example.learned for one in train),
    )
