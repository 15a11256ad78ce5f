"""An export's files, written and read. Whatever is not as it was written is an error that names the file and line."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from adapters.durable import sync_to_disk
from adapters.errors import InvalidError, StorageError
from adapters.names import quoted
from adapters.strict_json import parse_strictly
from adapters.transfer.records import (
    FORMAT,
    RECORDS,
    STREAMED,
    AuditRecord,
    FileRecord,
    Header,
    Record,
    Rows,
    UsageRecord,
)

HEADER_FILE: Final = "registry.json"
BLOBS_FOLDER: Final = "blobs"
_FILES: Final = frozenset(f"{name}.jsonl" for name in (*RECORDS, *STREAMED))
_MAX_HEADER_BYTES: Final = 1 << 20
_MAX_LINE_BYTES: Final = 1 << 26
"""A base's line is the longest: its tensors and config, some megabytes."""

AnyRecord = TypeVar("AnyRecord", bound=Record)


@contextmanager
def export_errors() -> Iterator[None]:
    """The operating system's errors with the export's folder, and rows that no export can hold, as ours.

    Raises:
        StorageError: `database_damaged`, of a row; else of the folder.
    """
    try:
        yield
    except ValidationError as error:
        message = f"The registry holds a row that can't be: {error.title}, {_what(error)}."
        raise StorageError(message, code="database_damaged") from error
    except OSError as error:
        raise StorageError(f"The export's folder can't be used: {error.strerror or 'it failed'}.") from error


# --- written ----------------------------------------------------------------------------------------------------------


def write_lines(path: Path, records: Iterable[Record]) -> FileRecord:
    """A record a line, on the disk for good, for its owner's eyes."""
    total = hashlib.sha256()
    count = 0
    path.touch(mode=0o600, exist_ok=False)
    with path.open("wb") as file:
        for record in records:
            line = _text(record).encode("ascii") + b"\n"
            total.update(line)
            file.write(line)
            count += 1
    sync_to_disk(path)
    return FileRecord(lines=count, sha256=total.hexdigest())


def write_header(folder: Path, header: Header) -> None:
    """registry.json, on the disk for good."""
    path = folder / HEADER_FILE
    path.touch(mode=0o600)
    path.write_text(_text(header, indent=2) + "\n", encoding="ascii")
    sync_to_disk(path)


def _text(record: Record, *, indent: int | None = None) -> str:
    return json.dumps(record.model_dump(), default=_as_json, indent=indent)


def _as_json(value: object) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is in no record")


# --- read -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Export:
    """An export that was read: whole, and each line a record. Whether they fit together, check.py says."""

    folder: Path
    header: Header
    rows: Rows

    def audit(self) -> Iterator[AuditRecord]:
        """The audit's records, read anew."""
        return _read_lines(self.folder, "audit", self.header, AuditRecord)

    def usage(self) -> Iterator[UsageRecord]:
        """The usage's, read anew."""
        return _read_lines(self.folder, "usage", self.header, UsageRecord)

    def blob(self, digest: str) -> Path:
        """The folder of a blob."""
        return self.folder / BLOBS_FOLDER / digest.partition(":")[2]


def read_export(folder: Path) -> Export:
    """All of an export but its blobs, and what is streamed.

    Raises:
        InvalidError: `export_incomplete`, `export_format_unknown` or `export_damaged`.
        StorageError: the folder can't be read.
    """
    with export_errors():
        header = _read_header(folder)
        rows: Any = {name: tuple(_read_lines(folder, name, header, kind)) for name, kind in RECORDS.items()}
    return Export(folder, header, Rows(**rows))


def damaged(file: str, number: int, what: str) -> InvalidError:
    """What is wrong with a line."""
    return InvalidError(f"{file}, line {number}: {what}.", code="export_damaged")


def _read_header(folder: Path) -> Header:
    if not folder.is_dir():
        raise InvalidError("There is no such folder.", code="export_incomplete")
    path = folder / HEADER_FILE
    if not path.is_file():
        message = f"The folder holds no whole export: {HEADER_FILE} is not there, which is written last."
        raise InvalidError(message, code="export_incomplete")
    try:
        with path.open("rb") as file:
            stated = parse_strictly(file.read(_MAX_HEADER_BYTES))
        number = stated.get("format") if isinstance(stated, dict) else None
        if isinstance(number, int) and number != FORMAT:
            message = f"The export has the format {number}; this program reads {FORMAT}: use the program that made it."
            raise InvalidError(message, code="export_format_unknown")
        header = Header.model_validate(stated)
    except ValueError as error:
        raise InvalidError(f"{HEADER_FILE}: {_what(error)}.", code="export_damaged") from error
    if header.files.keys() != _FILES:
        message = f"{HEADER_FILE} must name these files and no other: {', '.join(sorted(_FILES))}."
        raise InvalidError(message, code="export_damaged")
    return header


def _read_lines(folder: Path, name: str, header: Header, kind: type[AnyRecord]) -> Iterator[AnyRecord]:
    file_name = f"{name}.jsonl"
    path, stated = folder / file_name, header.files[file_name]
    if not path.is_file():
        raise InvalidError(f"{file_name} is not there.", code="export_incomplete")
    total = hashlib.sha256()
    count = 0
    with path.open("rb") as file:
        while line := file.readline(_MAX_LINE_BYTES):
            total.update(line)
            count += 1
            yield _read_line(file_name, count, line, kind)
    if (count, total.hexdigest()) != (stated.lines, stated.sha256):
        said = f"{HEADER_FILE} says {stated.lines} lines with the sha256 {stated.sha256}"
        raise InvalidError(f"{file_name} is not what was exported: {said}.", code="export_damaged")


def _read_line(file_name: str, number: int, line: bytes, kind: type[AnyRecord]) -> AnyRecord:
    if not line.endswith(b"\n"):
        raise damaged(file_name, number, "the line is cut off")
    try:
        return kind.model_validate(parse_strictly(line))
    except ValueError as error:
        raise damaged(file_name, number, _what(error)) from error


def _what(error: ValueError) -> str:
    """A sentence without its full stop; pydantic's own text quotes whole lines."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ").removesuffix(".")
    return f"{quoted(where)}: {what}" if where else what
