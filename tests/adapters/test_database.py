"""Transactions on both databases, and what is refused when one is opened."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

from adapters import (
    Caller,
    ConflictError,
    InvalidError,
    NotFoundError,
    Registry,
    RegistryError,
    RegistrySettings,
    Scope,
    StorageError,
    open_registry,
)
from adapters.database import Database
from tests.adapters.conftest import Execute
from tests.adapters.notes import READ_NOTES, WRITE_NOTE, make_notes, read_notes, write_note


@pytest.fixture
def notes(empty_url: str) -> Iterator[Database]:
    with Database(empty_url) as database:
        make_notes(database)
        yield database


def test_sqlite_is_opened_for_durable_concurrent_use(tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'registry.db'}") as database, database.read() as connection:
        pragmas = ("journal_mode", "synchronous", "foreign_keys")
        assert [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas] == ["wal", 2, 1]


def test_a_write_that_raises_leaves_no_trace(notes: Database) -> None:
    with pytest.raises(KeyError):
        _write_and_raise(notes)
    assert read_notes(notes) == []


def _write_and_raise(notes: Database) -> None:
    with notes.write() as connection:
        connection.execute(WRITE_NOTE, {"id": 1})
        raise KeyError


def test_a_read_sees_one_moment_whatever_is_written_meanwhile(notes: Database) -> None:
    with notes.read() as connection:
        before = connection.execute(READ_NOTES).all()
        write_note(notes, 1)
        assert connection.execute(READ_NOTES).all() == before
    assert read_notes(notes) == [1]


def test_two_that_write_the_same_thing_are_told_to_try_again(notes: Database) -> None:
    write_note(notes, 1)
    with pytest.raises(ConflictError, match="try again"):
        write_note(notes, 1)


@pytest.mark.parametrize("revision", ["9999", "somebody"])
def test_a_newer_programs_database_is_refused_and_left_alone(
    registry: Registry, home: Path, database_url: str | None, execute: Execute, revision: str
) -> None:
    registry.close()
    execute(f"UPDATE alembic_version SET version_num = '{revision}'")  # noqa: S608  — ours
    with pytest.raises(StorageError, match="a newer one wrote it") as caught:
        open_registry(home, database_url)
    assert caught.value.code == "database_newer"
    assert execute("SELECT count(*) FROM tenants") == [(2,)]


def test_another_programs_database_is_refused_and_left_alone(empty_url: str) -> None:
    engine = create_engine(empty_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE theirs (a integer)"))
    with pytest.raises(StorageError) as caught:
        Database(empty_url)
    assert caught.value.code == "database_foreign"
    assert inspect(engine).get_table_names() == ["theirs"]
    engine.dispose()


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_registry_is_opened_and_read_while_another_process_writes(registry: Registry, home: Path) -> None:
    operator = Caller.operator()
    scopes = frozenset({Scope.INFER})
    secret = registry.keys.issue(operator, "acme", name="k", scopes=scopes).secret
    registry.close()
    with closing(sqlite3.connect(home / "registry.db", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        with open_registry(home) as opened:
            caller = opened.keys.authenticate(secret)
            with pytest.raises(NotFoundError):
                opened.resolve(caller, "support")
            assert opened.adapters.list(operator, "acme") == []
        assert time.monotonic() - started < 10  # a writer would have been waited for, 30 s long


def test_a_file_that_is_no_database_is_refused_and_left_alone(home: Path) -> None:
    home.mkdir()
    content = b"these are somebody's notes, not a database\n" * 100
    (home / "registry.db").write_bytes(content)
    with pytest.raises(StorageError):
        open_registry(home)
    assert (home / "registry.db").read_bytes() == content


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "mysterysql://h/d",
        "",
        "postgresql+nodriver://u:secret@h/d",
        "mysql://u:secret@h/d",
        "sqlite://[::secret",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Database(url)
    assert caught.value.code == "invalid_database_url"
    assert "secret" not in caught.value.message


def test_a_home_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        open_registry(tmp_path / "file" / "home")


def test_a_database_that_fails_is_told_without_sql(notes: Database) -> None:
    with pytest.raises(RegistryError) as caught, notes.read() as connection:
        connection.execute(text("SELECT secret FROM nowhere"))
    assert caught.value.code == "storage_unavailable"
    assert "SELECT" not in caught.value.message


def test_the_settings_come_from_the_environment(
    database: str, empty_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORIKEET_HOME", str(home))
    monkeypatch.setenv("LORIKEET_MAX_RANK", "32")
    if database == "postgresql":
        monkeypatch.setenv("LORIKEET_DATABASE_URL", empty_url)
    with RegistrySettings().open() as registry:
        assert registry.limits.max_rank == 32
        registry.tenants.create(Caller.operator(), "acme")
    assert (home / "registry.db").exists() == (database == "sqlite")
