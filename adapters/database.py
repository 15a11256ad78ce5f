"""Transactions on the registry's database: SQLite by default, PostgreSQL by URL. Knows none of the tables.

Invariant: what a `write()` block has done is all on the disk when it ends, or none of it ever was.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Self

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError

from adapters.database_errors import database_errors
from adapters.errors import InvalidError
from adapters.migrate import is_current, migrate

_WAIT_SECONDS: Final = 30
"""How long a writer waits for the one before it. Write transactions take milliseconds."""
_MIGRATION_SECONDS: Final = 3600
"""How long a statement of a migration may take, on PostgreSQL: a table may be large."""
_POOL: Final = {"pool_size": 8, "max_overflow": 32}
"""As many as a server has threads that ask the registry; two servers stay below PostgreSQL's usual 100."""
_DRIVERS: Final = frozenset({"sqlite+pysqlite", "postgresql+psycopg"})
_IS_WRITE: Final = "lorikeet_is_write"


class Database:
    """A pool of connections. Safe to use from several threads; a connection belongs to one."""

    def __init__(self, url: str, *, wait_seconds: float = _WAIT_SECONDS) -> None:
        """Open and migrate the database at `url`. Nothing is waited for longer than about `wait_seconds`.

        Raises:
            StorageError: it can't be reached, is no database, or is not one that this program may touch.
            InvalidError: `url` is no database URL, or its driver is not installed.
        """
        parsed = _parsed(url)
        self._engine = _engine(parsed, wait_seconds, statement_seconds=wait_seconds)
        # SQLite's transactions see one moment anyway.
        is_sqlite = self._engine.dialect.name == "sqlite"
        one_moment = {} if is_sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._reading = self._engine.execution_options(**one_moment)
        self._writing = _writing(self._engine)
        try:
            # Most often there is nothing to do, and then nobody's write transaction is waited for.
            with self.read() as connection:
                is_migrated = is_current(connection)
            if not is_migrated:
                _migrate(parsed, wait_seconds)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the pool's connections."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that changes nothing and sees one moment."""
        with database_errors(), self._reading.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that commits if the block ends, and leaves no trace if it raises.

        Raises:
            ConflictError: somebody else's transaction got in between; trying again helps.
            StorageError: the database failed, and nothing was changed.
        """
        with database_errors(), self._writing.begin() as connection:
            yield connection


def insert_into(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that can say ON CONFLICT, which each database has as its own."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
        driver = f"{parsed.get_backend_name()}+{parsed.get_driver_name()}"
    except (ArgumentError, ValueError, ImportError) as error:
        raise _url_refused() from error
    if driver not in _DRIVERS:
        raise _url_refused()
    return parsed


def _url_refused() -> InvalidError:
    return InvalidError(
        "The database URL can't be used: write sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME; "
        "the latter needs lorikeet[postgresql] to be installed.",
        code="invalid_database_url",
    )


def _engine(url: URL, wait_seconds: float, *, statement_seconds: float) -> Engine:
    pool: dict[str, Any] = {**_POOL, "pool_timeout": wait_seconds}
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, **pool)
        event.listen(engine, "connect", partial(_prepare_sqlite, round(wait_seconds * 1000)))
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        from adapters.postgresql import postgresql_engine  # noqa: PLC0415  — its driver is an extra
    except ImportError as error:
        raise _url_refused() from error
    return postgresql_engine(url, lock_seconds=wait_seconds, statement_seconds=statement_seconds, **pool)


def _writing(engine: Engine) -> Engine:
    """For write transactions. Who waited for a lock sees what its holder did, whatever the database's default."""
    options: dict[str, Any] = {_IS_WRITE: True}
    if engine.dialect.name != "sqlite":
        options["isolation_level"] = "READ COMMITTED"
    return engine.execution_options(**options)


def _migrate(url: URL, wait_seconds: float) -> None:
    """On connections of its own: what a migration does may take longer than what a request waits for."""
    engine = _engine(url, wait_seconds, statement_seconds=_MIGRATION_SECONDS)
    try:
        with database_errors(), _writing(engine).begin() as connection:
            migrate(connection)
    finally:
        engine.dispose()


def _prepare_sqlite(busy_milliseconds: int, connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver starts no transactions of its own: `_begin_sqlite` does
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={busy_milliseconds}",
        "journal_mode=WAL",
        "synchronous=FULL",  # NORMAL may lose an acknowledged commit when the power goes
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """A write takes its lock at once: one that upgrades later fails with SQLITE_BUSY, whatever the timeout."""
    options: Any = connection.get_execution_options()
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get(_IS_WRITE) else "BEGIN")
