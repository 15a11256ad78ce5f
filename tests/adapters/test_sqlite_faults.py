"""SQLite's file is locked, full or damaged: what can be done is done, what can't is told, and nothing is lost."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from adapters import StorageError
from adapters.database import Database
from tests.adapters.notes import make_notes, read_notes, write_note

PAGE_BYTES = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture
def notes(path: Path) -> Iterator[Database]:
    with Database(f"sqlite:///{path}", wait_seconds=0.05) as database:
        make_notes(database)
        write_note(database, 1)
        yield database


def test_while_another_program_holds_the_lock_writes_are_refused_and_reads_go_on(notes: Database, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match="busy; try again"):
            write_note(notes, 2)
        assert read_notes(notes) == [1]
    write_note(notes, 3)
    assert read_notes(notes) == [1, 3]


def test_a_full_disk_refuses_the_write_and_keeps_every_earlier_one(notes: Database) -> None:
    _allow_pages(notes, 1)  # as many as there are
    kept = _write_until_full(notes)
    assert read_notes(notes) == kept
    _allow_pages(notes, 10**6)
    write_note(notes, 10**6)
    assert read_notes(notes) == [*kept, 10**6]


def test_a_damaged_page_is_told_with_what_to_do_and_nothing_is_destroyed(notes: Database, path: Path) -> None:
    notes.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(b"\xa5" * (path.stat().st_size - PAGE_BYTES))
    damaged = path.read_bytes()
    with (
        pytest.raises(StorageError, match="restore a backup") as caught,
        Database(f"sqlite:///{path}") as opened,
    ):
        read_notes(opened)
    assert caught.value.code == "database_damaged"
    assert path.read_bytes() == damaged


def _write_until_full(notes: Database) -> list[int]:
    """The numbers of all that was acknowledged."""
    kept = [1]
    refused = None
    while refused is None:
        try:
            _write_much(notes, kept[-1] + 1)
        except StorageError as error:
            refused = error
        else:
            kept.append(kept[-1] + 1)
    assert "full" in refused.message
    return kept


def _write_much(notes: Database, number: int) -> None:
    with notes.write() as connection:
        connection.execute(
            text("INSERT INTO notes (id, words) VALUES (:id, :words)"), {"id": number, "words": "-" * 1000}
        )


def _allow_pages(notes: Database, count: int) -> None:
    """For the pool's only connection."""
    with notes.read() as connection:
        connection.execute(text(f"PRAGMA max_page_count={count}"))
