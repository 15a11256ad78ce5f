"""The database is migrated when it is opened, and left alone when it is not ours."""

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, create_mock_engine, text
from sqlalchemy.schema import CreateTable

from adapters import (
    Caller,
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
from adapters.schema import METADATA


def test_the_migrations_lead_to_the_schema(registry: Registry, home: Path) -> None:
    registry.close()
    engine = create_engine(f"sqlite:///{home / 'registry.db'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
    engine.dispose()


def test_the_schema_can_be_said_in_postgresqls_words() -> None:
    said: list[Any] = []
    engine = create_mock_engine("postgresql://", lambda words, *_: said.append(words))
    METADATA.create_all(engine, checkfirst=False)
    tables = [str(words.compile(dialect=engine.dialect)) for words in said if isinstance(words, CreateTable)]
    assert len(tables) == len(METADATA.tables)


def test_sqlite_is_opened_for_durable_concurrent_use(tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'registry.db'}") as database, database.read() as connection:
        pragmas = ("journal_mode", "synchronous", "foreign_keys")
        assert [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas] == ["wal", 2, 1]


def test_a_write_that_raises_leaves_no_trace(tmp_path: Path) -> None:
    def break_off(database: Database) -> None:
        with database.write() as connection:
            connection.execute(text("INSERT INTO tenants (name, created_at) VALUES ('acme', '2026-01-01')"))
            raise KeyError

    with Database(f"sqlite:///{tmp_path / 'registry.db'}") as database:
        with pytest.raises(KeyError):
            break_off(database)
        with database.read() as connection:
            assert connection.execute(text("SELECT count(*) FROM tenants")).scalar() == 0


def test_opening_a_new_registry_from_many_threads_at_once_works(home: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        registries = list(pool.map(lambda _: open_registry(home), range(8)))
    for opened in registries:
        assert opened.tenants.list(Caller.operator()) == []
        opened.close()


@pytest.mark.parametrize("revision", ["9999", "somebody's"])
def test_a_newer_programs_database_is_refused_and_left_alone(registry: Registry, home: Path, revision: str) -> None:
    registry.close()
    with closing(sqlite3.connect(home / "registry.db", isolation_level=None)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    with pytest.raises(StorageError, match="a newer one wrote it") as caught:
        open_registry(home)
    assert caught.value.code == "database_newer"
    with closing(sqlite3.connect(home / "registry.db")) as connection:
        assert connection.execute("SELECT count(*) FROM tenants").fetchone() == (2,)


def test_another_programs_database_is_refused_and_left_alone(home: Path) -> None:
    home.mkdir()
    with closing(sqlite3.connect(home / "registry.db", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    with pytest.raises(StorageError) as caught:
        open_registry(home)
    assert caught.value.code == "database_foreign"
    with closing(sqlite3.connect(home / "registry.db")) as connection:
        assert [name for (name,) in connection.execute("SELECT name FROM sqlite_master")] == ["theirs"]


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


@pytest.mark.parametrize("url", ["nonsense", "mysterysql://h/d", "", "postgresql+nodriver://u:secret@h/d"])
def test_a_url_that_cannot_be_used_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Database(url)
    assert caught.value.code == "invalid_database_url"
    assert "secret" not in caught.value.message


def test_a_home_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        open_registry(tmp_path / "file" / "home")


def test_a_database_that_fails_is_told_without_sql(tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'registry.db'}") as database:
        with pytest.raises(RegistryError) as caught, database.read() as connection:
            connection.execute(text("SELECT secret FROM nowhere"))
        assert caught.value.code == "storage_unavailable"
        assert "SELECT" not in caught.value.message


def test_the_settings_come_from_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIKEET_HOME", str(home))
    monkeypatch.setenv("LORIKEET_MAX_RANK", "32")
    with RegistrySettings().open() as registry:
        assert registry.limits.max_rank == 32
    assert (home / "registry.db").exists()
