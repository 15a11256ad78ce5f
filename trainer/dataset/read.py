"""Reads the data of a job, strictly: every row is learned from as it stands, or named as broken. Knows no tokens.

Looks at all rows before it says which format they have, and at all of them before it says what is wrong.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainer.dataset.files import Record, records_of, unit_of
from trainer.dataset.findings import Finding, Findings, Place, Severity, require_no_errors
from trainer.dataset.hub import PREFIX, hub_records
from trainer.dataset.problems import BrokenRow
from trainer.dataset.records import fingerprint
from trainer.dataset.schema import read_schema
from trainer.dataset.shapes import format_of, row_of
from trainer.dataset.split import FEWEST_ROWS, split
from trainer.dataset.values import Dataset, Preference, Row, Split
from trainer.errors import DatasetError, JobError
from trainer.job import DataFormat, TrainJob


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file or a data set of the hub says, and what is wrong with it."""

    dataset: Dataset
    """The rows that are sound."""
    formats: tuple[DataFormat, ...]
    source_fingerprint: str
    findings: tuple[Finding, ...]


def read_dataset(job: TrainJob, beside: Path) -> Split:
    """The job's data, split. Relative names are meant from `beside`.

    Raises:
        DatasetError: it can't be read, or rows are broken: all of them by line.
        JobError: the schema can't be read, or the rows are not of the kind that the objective learns from.
    """
    found = split_data(job, beside)
    require_no_errors(found.findings, found.train.name)
    if not found.train.rows:
        raise DatasetError(f"{found.train.name}: there are no examples in it.")
    is_pairs = isinstance(found.train.rows[0], Preference)
    if is_pairs != (job.objective == "dpo"):
        has, wants = (
            ("pairs", "objective: dpo") if is_pairs else ("no pairs", "prompt, chosen and rejected in each row")
        )
        raise JobError(f"{found.train.name}: objective {job.objective}, but the rows are {has}: it takes {wants}.")
    return found


def split_data(job: TrainJob, beside: Path) -> Split:
    """The same, whatever is wrong with the rows: what that is stands in the findings.

    Raises:
        DatasetError: a file is missing or of a kind that is not read, or the hub does not give it.
        JobError: the schema can't be read.
    """
    schema = read_schema(beside / job.answer_schema) if job.answer_schema else None
    reading = read_rows(job.data, beside, job)
    if isinstance(job.held_out, str):
        other = read_rows(job.held_out, beside, job)
        sides = reading.dataset, other.dataset
        findings = (*reading.findings, *other.findings, *_differ(reading, other))
    else:
        sides = split(reading.dataset, job.held_out, job.seed)
        findings = (*reading.findings, *_too_few(job.held_out, *sides))
    return Split(*sides, reading.source_fingerprint, findings, schema)


def read_rows(source: str, beside: Path, job: TrainJob) -> Reading:
    """All rows of a file, or of hub:OWNER/NAME. Raises DatasetError if there is no such thing."""
    if source.startswith(PREFIX):
        return _reading(source, "row", hub_records(source), job, None)
    path = beside / source
    return _reading(path.name, unit_of(path), records_of(path), job, path)


@dataclass(slots=True)
class _Gathered:
    rows: list[Row] = field(default_factory=list)
    broken: list[tuple[int, BrokenRow]] = field(default_factory=list)
    broken_file: BrokenRow | None = None
    """Why it could be read no further."""
    lines: dict[DataFormat, list[int]] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)


def _reading(name: str, unit: str, records: Iterator[Record], job: TrainJob, path: Path | None) -> Reading:
    gathered = _gather(records, job.format)
    dataset = Dataset(name, tuple(gathered.rows), fingerprint(gathered.rows), unit)
    source = _file_fingerprint(path) if path else dataset.fingerprint
    return Reading(dataset, tuple(gathered.lines), source, _findings(name, unit, gathered, job))


def _gather(records: Iterator[Record], wanted: DataFormat) -> _Gathered:
    gathered = _Gathered()
    try:
        for line, record in records:
            _take(gathered, line, record, wanted)
    except BrokenRow as problem:  # the file itself, from here on
        gathered.broken_file = problem
    return gathered


def _take(gathered: _Gathered, line: int, record: object, wanted: DataFormat) -> None:
    try:
        if isinstance(record, BrokenRow):
            raise record
        written = format_of(record) if wanted is DataFormat.AUTO else wanted
        gathered.lines.setdefault(written, []).append(line)
        row, unused = row_of(record, line, written)
    except BrokenRow as problem:
        gathered.broken.append((line, problem))
    except RecursionError:
        gathered.broken.append((line, BrokenRow("not_json", "nested too deeply")))
    else:
        gathered.rows.append(row)
        gathered.unused.update(unused)


def _findings(name: str, unit: str, gathered: _Gathered, job: TrainJob) -> tuple[Finding, ...]:
    findings = Findings()
    if problem := gathered.broken_file:
        findings.add(
            problem.kind, Severity.ERROR, Place(file=name, unit=unit, line=problem.line, detail=problem.message)
        )
    for line, problem in gathered.broken:
        place = Place(file=name, unit=unit, line=line, detail=problem.message)
        findings.add(problem.kind, Severity(job.checks.broken_row), place)
    if len(gathered.lines) > 1:
        for line, detail in _mixed(gathered.lines):
            findings.add("mixed_formats", Severity.ERROR, Place(file=name, unit=unit, line=line, detail=detail))
    if not (gathered.rows or gathered.broken or gathered.broken_file):
        findings.add("empty_file", Severity.ERROR, Place(file=name, unit=unit, line=1))
    if gathered.unused:
        told = ", ".join(f"{key} ({count} {unit}s)" for key, count in gathered.unused.most_common(10))
        findings.say("unused_keys", Severity.WARN, f"{name}: {told}")
    return findings.gathered()


def _mixed(lines: Mapping[DataFormat, list[int]]) -> Iterator[tuple[int, str]]:
    """The first line of the format that most rows have, and every line of the others."""
    usual, *others = sorted(lines, key=lambda written: -len(lines[written]))
    yield lines[usual][0], f"{usual}, as {len(lines[usual])} are"
    yield from sorted((line, str(written)) for written in others for line in lines[written])


def _differ(train: Reading, held_out: Reading) -> tuple[Finding, ...]:
    """Rows of another kind held out than trained on."""
    findings = Findings()
    kinds = {type(row) for side in (train, held_out) for row in side.dataset.rows[:1]}
    if len(kinds) > 1:
        for reading in (train, held_out):
            row = reading.dataset.rows[0]
            findings.add("mixed_formats", Severity.ERROR, reading.dataset.place(row, str(reading.formats[0])))
    return findings.gathered()


def _too_few(share: float, train: Dataset, held_out: Dataset) -> tuple[Finding, ...]:
    findings = Findings()
    if share and train.rows and not held_out.rows:
        findings.say("nothing_held_out", Severity.WARN, f"{len(train.rows)} rows, and {FEWEST_ROWS} are the fewest")
    return findings.gathered()


def _file_fingerprint(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise DatasetError(f"{path}: the data file can't be read: {error.strerror or error}.") from error
