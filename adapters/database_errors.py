"""A database's errors as ours. The driver's own text may hold SQL, values and paths: it stays in the chain."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from adapters.errors import ConflictError, RegistryError, StorageError

_CONFLICTS: Final = frozenset({"40001", "40P01"})
"""PostgreSQL's serialization_failure and deadlock_detected: of two that got in each other's way, one was undone."""
_BUSY: Final = frozenset({"55P03", "57014", 5, 6})
"""lock_not_available and query_canceled (a timeout, for nobody cancels ours); SQLITE_BUSY and SQLITE_LOCKED."""
_FULL: Final = frozenset({"53100", 13})
"""disk_full; SQLITE_FULL."""
_DAMAGED: Final = frozenset({"XX001", "XX002", 11, 26})
"""data_corrupted and index_corrupted; SQLITE_CORRUPT and SQLITE_NOTADB."""


@contextmanager
def database_errors() -> Iterator[None]:
    """The driver's errors as ours.

    Raises:
        ConflictError: another transaction got in between; trying again helps.
        StorageError: the database failed; `insufficient_storage` if it is full, `database_damaged` if it did for good.
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise _refused(error) from error


def _refused(error: SQLAlchemyError) -> RegistryError:
    cause = _cause(error)
    if isinstance(error, IntegrityError) or cause in _CONFLICTS:
        return ConflictError("Another change to the same thing came in between; try again.")
    if cause in _BUSY or isinstance(error, PoolTimeoutError):
        return StorageError("The registry's database is busy; try again.")
    if cause in _FULL:
        return StorageError(
            "The registry's database is full: nothing was changed. Make room on its disk.", code="insufficient_storage"
        )
    if cause in _DAMAGED:
        return StorageError(
            "The registry's database is damaged, or is no database; it was left as it is. "
            "Keep a copy of it, and restore a backup.",
            code="database_damaged",
        )
    return StorageError("The registry's database can't be used: it is unreachable, or what it was asked makes it fail.")


def _cause(error: SQLAlchemyError) -> str | int | None:
    """PostgreSQL's SQLSTATE, or SQLite's primary result code."""
    if not isinstance(error, DBAPIError):
        return None
    sqlstate: str | None = getattr(error.orig, "sqlstate", None)
    code: int | None = getattr(error.orig, "sqlite_errorcode", None)
    return sqlstate if code is None else code & 0xFF
