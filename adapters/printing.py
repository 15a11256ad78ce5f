"""What the registry's commands print: a table for people, or JSON for programs."""

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date, datetime
from enum import StrEnum
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
"""The flag that every command has."""

Columns = Mapping[str, Callable[[Any], object]]
"""Heading → what of a value stands under it."""

_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs"})
"""Unicode's categories of what steers a terminal or turns its text round, and of halves of characters."""


@contextmanager
def progress(doing: str) -> Iterator[Callable[[str], None]]:
    """Tell a person at a terminal, on stderr, what takes so long; call what it gives with how far it has come."""
    with Console(stderr=True).status(doing) as status:
        yield lambda said: status.update(f"{doing}: {escape(said)}")


def megabytes(size_bytes: int) -> str:
    """`12.3 MB`."""
    return f"{size_bytes / 1e6:,.1f} MB"


def print_rows(values: Sequence[Any], columns: Columns, *, as_json: bool) -> None:
    """Several values: a table with one row each, or a JSON list."""
    if as_json:
        _print_json([asdict(value) for value in values])
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(columns):
        table.add_column(heading, no_wrap=number == 0)  # the first is what other commands take
    for value in values:
        table.add_row(*(_shown(read(value)) for read in columns.values()))
    Console().print(table)


def print_one(value: Any, columns: Columns, *, as_json: bool) -> None:  # noqa: ANN401  — any of the registry's values
    """One value: a line for each column, or a JSON object."""
    if as_json:
        _print_json(asdict(value))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for heading, read in columns.items():
        table.add_row(heading, _shown(read(value)))
    # A secret or a digest must stay one line that can be copied, however narrow the terminal.
    Console(soft_wrap=True).print(table)


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, default=_as_json))


def _as_json(value: object) -> object:
    match value:
        case date():
            return value.isoformat()
        case frozenset():
            return sorted(value)
        case _:
            raise TypeError(f"{type(value).__name__} is not one of the registry's values")


def _shown(value: object) -> str:
    match value:
        case None:
            return "–"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M} UTC"
        case StrEnum() | str():
            return _plain(str(value))
        case Mapping():
            return _plain(json.dumps(dict(value), default=_as_json)) if value else "–"
        case tuple() | frozenset():
            return _plain(", ".join(sorted(str(each) for each in value))) or "–"
        case _:
            return str(value)


def _plain(text: str) -> str:
    """As it stands there: neither rich's markup nor the terminal's sequences mean anything."""
    shown = (
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(each) in _UNSEEN and each != "\n" else each for each in text
    )
    return escape("".join(shown))
