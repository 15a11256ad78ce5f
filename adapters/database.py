"""Transactions on the registry's database: SQLite by default, PostgreSQL by URL. Knows none of the tables.

Invariant: what a `write()` block has done is all on the disk when it ends, or none of it ever was.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from adapters.errors import ConflictError, InvalidError, StorageError
from adapters.migrate import is_current, migrate

_BUSY_SECONDS: Final = 30
"""How long a SQLite writer waits for the one before it. Write transactions take milliseconds."""
_IS_WRITE: Final = "lorikeet_is_write"


class Database:
    """A pool of connections. Safe to use from several threads; a connection belongs to one."""

    def __init__(self, url: str) -> None:
        """Open and migrate the database at `url`.

        Raises:
            StorageError: it can't be reached, is no database, or is not one that this program may touch.
            InvalidError: `url` is no database URL, or its driver is not installed.
        """
        self._engine = _engine(url)
        try:
            # Most often there is nothing to do, and then nobody's write transaction is waited for.
            with self.read() as connection:
                is_migrated = is_current(connection)
            if not is_migrated:
                with self.write() as connection:
                    migrate(connection)
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
        """A transaction that changes nothing and, on SQLite, sees one moment."""
        with _storage_errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that commits if the block ends, and leaves no trace if it raises.

        Raises:
            ConflictError: somebody else's transaction got in between; trying again helps.
            StorageError: the database failed, and nothing was changed.
        """
        writing = self._engine.execution_options(**{_IS_WRITE: True})
        with _storage_errors(), writing.begin() as connection:
            yield connection


@contextmanager
def _storage_errors() -> Iterator[None]:
    """The driver's errors as ours. Their own text may hold SQL, values and paths, and stays in the chain."""
    try:
        yield
    except IntegrityError as error:
        raise ConflictError("Another change to the same thing came in between; try again.") from error
    except SQLAlchemyError as error:
        raise StorageError(
            "The registry's database can't be used: it is unreachable, busy, full, damaged or no database."
        ) from error


def _engine(url: str) -> Engine:
    try:
        engine = create_engine(url, pool_size=8, max_overflow=64, pool_pre_ping=not url.startswith("sqlite"))
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise InvalidError(
            "The database URL can't be used: write sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME, "
            "and install the driver that it names.",
            code="invalid_database_url",
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver starts no transactions of its own: `_begin_sqlite` does
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={_BUSY_SECONDS * 1000}",
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
