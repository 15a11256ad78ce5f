"""PostgreSQL is slow, gone or hangs: that is told, nothing waits for ever, and all goes on when it is back."""

import traceback
from collections.abc import Callable, Iterator
from threading import Barrier, Thread

import pytest
from sqlalchemy import Connection, text

from adapters import ConflictError, StorageError
from adapters.database import Database
from tests.adapters.notes import make_notes, read_notes, write_note
from tests.postgres import Postgres

NOWHERE = "postgresql+psycopg://u:hunter2@/d?host=/nowhere"
LOCK_NOTE = text("SELECT id FROM notes WHERE id = :id FOR UPDATE")


@pytest.fixture
def notes(new_postgresql: Callable[[], str]) -> Iterator[Database]:
    with Database(new_postgresql(), wait_seconds=0.3) as database:
        make_notes(database)
        write_note(database, 1)
        write_note(database, 2)
        yield database


@pytest.fixture
def own_notes(own_postgres: Postgres) -> Iterator[Database]:
    with Database(own_postgres.url(own_postgres.create_database()), wait_seconds=0.3) as database:
        make_notes(database)
        write_note(database, 1)
        yield database


def test_a_database_that_was_away_is_used_again_when_it_is_back(own_notes: Database, own_postgres: Postgres) -> None:
    own_postgres.stop()
    with pytest.raises(StorageError):
        write_note(own_notes, 2)
    with pytest.raises(StorageError):
        read_notes(own_notes)
    own_postgres.start()
    write_note(own_notes, 3)
    assert read_notes(own_notes) == [1, 3]


def test_what_was_acknowledged_before_a_crash_is_there_after_it(own_notes: Database, own_postgres: Postgres) -> None:
    write_note(own_notes, 2)
    own_postgres.kill()
    own_postgres.start()
    assert read_notes(own_notes) == [1, 2]


def test_a_crash_in_the_middle_of_a_write_leaves_no_trace_of_it(own_notes: Database, own_postgres: Postgres) -> None:
    with pytest.raises(StorageError):
        _write_and_crash(own_notes, own_postgres)
    own_postgres.start()
    assert read_notes(own_notes) == [1]


def test_a_database_that_hangs_is_given_up_and_used_again_when_it_goes_on(
    own_notes: Database, own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_notes.read() as connection:  # connected while it still answers
        own = connection.connection.dbapi_connection
        assert own is not None
        monkeypatch.setattr(own, "answer_seconds", 0.1)
    own_postgres.pause()
    with pytest.raises(StorageError):
        read_notes(own_notes)
    own_postgres.resume()
    assert read_notes(own_notes) == [1]


def test_a_statement_that_takes_too_long_is_ended(notes: Database) -> None:
    with pytest.raises(StorageError, match="busy"), notes.read() as connection:
        connection.execute(text("SELECT pg_sleep(60)"))
    assert read_notes(notes) == [1, 2]


def test_a_lock_is_not_waited_for_longer_than_that(notes: Database) -> None:
    with notes.write() as first:
        first.execute(LOCK_NOTE, {"id": 1})
        with pytest.raises(StorageError, match="busy"), notes.write() as second:
            second.execute(LOCK_NOTE, {"id": 1})


def test_one_of_two_in_a_deadlock_is_told_to_try_again(new_postgresql: Callable[[], str]) -> None:
    with Database(new_postgresql(), wait_seconds=30) as database:
        make_notes(database)
        write_note(database, 1)
        write_note(database, 2)
        both_have_one, outcomes = Barrier(2), list[str]()
        pair = [
            Thread(target=_lock_both, args=(database, order, both_have_one, outcomes)) for order in ((1, 2), (2, 1))
        ]
        for thread in pair:
            thread.start()
        for thread in pair:
            thread.join(60)
    assert sorted(outcomes) == ["conflict", "done"]


def test_a_read_can_write_nothing(notes: Database) -> None:
    with pytest.raises(StorageError), notes.read() as connection:
        connection.execute(text("DELETE FROM notes"))
    assert read_notes(notes) == [1, 2]


def test_what_the_url_says_of_the_connection_stands(new_postgresql: Callable[[], str]) -> None:
    url = f"{new_postgresql()}&application_name=theirs&options=-c%20lock_timeout%3D1234"
    with Database(url) as database, database.read() as connection:
        assert _setting(connection, "application_name") == "theirs"
        assert _setting(connection, "lock_timeout") == "1234ms"
        assert _setting(connection, "statement_timeout") == "30s"


def test_a_password_is_in_no_message_and_no_traceback() -> None:
    with pytest.raises(StorageError) as caught:
        Database(NOWHERE)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def _write_and_crash(notes: Database, server: Postgres) -> None:
    with notes.write() as connection:
        connection.execute(text("INSERT INTO notes (id) VALUES (2)"))
        server.kill()


def _lock_both(database: Database, order: tuple[int, int], both_have_one: Barrier, outcomes: list[str]) -> None:
    try:
        with database.write() as connection:
            connection.execute(LOCK_NOTE, {"id": order[0]})
            both_have_one.wait(30)
            connection.execute(LOCK_NOTE, {"id": order[1]})
        outcomes.append("done")
    except ConflictError:
        outcomes.append("conflict")


def _setting(connection: Connection, name: str) -> object:
    return connection.execute(text("SELECT current_setting(:name)"), {"name": name}).scalar()
