"""The records of a file, one at a time, each with its line: JSONL, JSON, CSV, Parquet. Knows no formats of rows.

A record that can't be read is given as a BrokenRow in its place; a file that can't, raises one with the line where it
ends. Holds one record at a time, but for JSON: that is read whole.
"""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from trainer.dataset.problems import BrokenRow
from trainer.errors import DatasetError

Record = tuple[int, Any]
"""Line (or row), and what stands there: whatever the JSON says, or a BrokenRow."""

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
JSON_CELLS: Final = frozenset({"messages", "conversations", "tools", "prompt", "completion", "chosen", "rejected"})
"""Of a CSV file: these may hold JSON, as lists of messages."""
PARQUET_ROWS_AT_ONCE: Final = 1024


def records_of(path: Path) -> Iterator[Record]:
    """Every record of the file; empty lines are passed over.

    Raises:
        DatasetError: it is missing, or of a kind that is not read.
        BrokenRow: it is not what its name says.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DatasetError(f"{path.name}: data are read from {', '.join(readers)} files, or from hub:OWNER/NAME.")
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise DatasetError(f"{path}: the data file can't be read: it is no file.")
    try:
        yield from reader(path)
    except OSError as error:
        raise DatasetError(f"{path}: the data file can't be read: {error.strerror or error}.") from error


def unit_of(path: Path) -> str:
    """What the first half of a record counts."""
    return "row" if path.suffix.lower() == ".parquet" else "line"


def _jsonl(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                _require_utf8(line)
                line = line.removeprefix(BYTE_ORDER_MARK)  # noqa: PLW2901  — the same line without it
            if line.strip():
                yield number, _parsed(line)


def _parsed(line: bytes) -> Any:  # noqa: ANN401  — whatever the JSON says
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return _not_utf8(error)
    except (ValueError, RecursionError) as error:
        return BrokenRow("not_json", str(error))


def _require_utf8(beginning: bytes) -> None:
    """Raise BrokenRow for UTF-16 and UTF-32: of those, no line would make sense."""
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in beginning:
        raise BrokenRow("wrong_encoding", "byte 1: the file is in UTF-16 or binary")


def _not_utf8(error: UnicodeDecodeError) -> BrokenRow:
    byte = error.object[error.start]
    return BrokenRow("wrong_encoding", f"byte {error.start + 1}: 0x{byte:02x}, which would be {chr(byte)!r} in Latin-1")


def _json(path: Path) -> Iterator[Record]:
    """A list of records, or records one after the other."""
    content = path.read_bytes()
    _require_utf8(content[:1000])
    try:
        text = content.removeprefix(BYTE_ORDER_MARK).decode()
    except UnicodeDecodeError as error:
        before = content.count(b"\n", 0, error.start)
        raise _in_line(before + 1, _not_utf8(error)) from error
    is_list = text.lstrip()[:1] == "["
    place, line, counted = len(text) - len(text.lstrip()) + is_list, 1, 0
    while (place := _next(text, place)) < len(text) and not (is_list and text[place] == "]"):
        line, counted = line + text.count("\n", counted, place), place
        try:
            record, place = json.JSONDecoder().raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise _in_line(line, BrokenRow("not_json", str(error))) from error
        yield line, record
    if is_list and text[place:].strip() != "]":
        raise _in_line(line, BrokenRow("not_json", "the list of examples does not end with its only ]"))


def _next(text: str, place: int) -> int:
    """Where the next record begins: white space and one comma are passed over."""
    is_separated = False
    while place < len(text) and (text[place].isspace() or (text[place] == "," and not is_separated)):
        is_separated = is_separated or text[place] == ","
        place += 1
    return place


def _csv(path: Path) -> Iterator[Record]:
    broken: dict[int, BrokenRow] = {}
    with path.open("rb") as file:
        reader = csv.reader(_decoded(file, broken), strict=True)
        header, begins = _header(reader), reader.line_num + 1
        if broken:
            raise broken[min(broken)]
        while (cells := _cells(reader, begins)) is not None:
            ends = reader.line_num
            bad = next((broken[line] for line in range(begins, ends + 1) if line in broken), None)
            if cells:
                yield begins, bad or _cells_as_record(header, cells)
            begins = ends + 1


def _decoded(file: Iterator[bytes], broken: dict[int, BrokenRow]) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if number == 1:
            _require_utf8(line)
        try:
            yield (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).decode()
        except UnicodeDecodeError as error:
            broken[number] = _not_utf8(error)
            yield line.decode(errors="replace")


def _header(reader: Any) -> list[str]:  # noqa: ANN401  — csv's reader has no public type
    header = _cells(reader, 1) or []
    if len(set(header)) < len(header):
        raise _in_line(1, BrokenRow("not_a_table", "two columns have the same name"))
    return header


def _cells(reader: Any, line: int) -> list[str] | None:  # noqa: ANN401  — csv's reader has no public type
    """The next record's; None at the end. The cells' length is only limited while one is read: that limit is global."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        cells: list[str] | None = next(reader, None)
    except csv.Error as error:
        raise _in_line(line, BrokenRow("not_a_table", str(error))) from error
    finally:
        csv.field_size_limit(limit)
    return cells


def _cells_as_record(header: list[str], cells: list[str]) -> Any:  # noqa: ANN401  — a record or a BrokenRow
    if len(cells) != len(header):
        return BrokenRow("not_a_table", f"{len(cells)} cells below {len(header)} names of columns")
    record: dict[str, Any] = dict(zip(header, cells, strict=True))
    for key in JSON_CELLS & record.keys():
        if record[key].lstrip().startswith("[{"):
            try:
                record[key] = json.loads(record[key])
            except (ValueError, RecursionError) as error:
                return BrokenRow("not_json", f"column {key}: {error}")
    return record


def _parquet(path: Path) -> Iterator[Record]:
    from pyarrow import ArrowInvalid, parquet  # noqa: PLC0415  — heavy
    from pyarrow.lib import ArrowException  # noqa: PLC0415  — the same

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS_AT_ONCE):
                yield from enumerate(batch.to_pylist(), start=number + 1)
                number += batch.num_rows
    except UnicodeDecodeError as error:
        raise _in_line(number + 1, _not_utf8(error)) from error
    except (ArrowException, ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise _in_line(number + 1, BrokenRow("not_a_table", str(error).partition("\n")[0])) from error


def _in_line(line: int, problem: BrokenRow) -> BrokenRow:
    """The same, with the line in which the file can be read no further."""
    problem.line = line
    return problem
