"""Takes away the bytes that nothing needs any more.

A blob stays while a version that can be served is made of it, while somebody holds it, and for a grace period after it
was last published or let go.

Its row is locked while it goes out of sight, in one quick step: who publishes the same bytes at that moment waits, and
then puts them anew; who enters or restores a version of them asks the store under the same lock. So no version is ever
made of bytes that are about to vanish, and what dies between that step and the commit leaves a row without bytes, which
proves nothing to anybody, and which the next collect strikes. (A mark on the row, in a transaction before, would not do
instead: whoever publishes between the two finds bytes that are still to go.) To free the room takes as long as the disk
or the store likes: that comes after the commit, when nobody waits for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Connection, delete, exists, select

from adapters.access import Action, allow
from adapters.callers import Caller
from adapters.changes import Change, forget_old_calls, note
from adapters.database import Database
from adapters.errors import InvalidError
from adapters.schema import BLOBS, VERSIONS
from adapters.storage import Blobs
from adapters.values import SERVABLE

MAX_GRACE_HOURS: Final = 100 * 365 * 24
"""More than anybody means, and less than a date can hold."""


@dataclass(frozen=True, slots=True)
class CollectedBlob:
    """Bytes that nothing held any more."""

    digest: str
    size_bytes: int


def collect(database: Database, blobs: Blobs, caller: Caller, *, grace_seconds: float) -> Iterator[CollectedBlob]:
    """Remove what nothing needs, one blob a transaction; each is told once it has gone.

    Raises:
        ForbiddenError: the caller is not the platform.
        InvalidError: `invalid_grace`.
        StorageError: the disk, the store or the database failed. What was told has gone.
    """
    allow(caller, Action.OPERATE)
    if not 0 <= grace_seconds <= MAX_GRACE_HOURS * 3600:  # nor is it NaN
        raise InvalidError(f"A grace period is 0 to {MAX_GRACE_HOURS} hours.", code="invalid_grace")
    before = datetime.now(UTC) - timedelta(seconds=grace_seconds)
    is_needed = exists().where(VERSIONS.c.digest == BLOBS.c.digest, VERSIONS.c.state.in_(sorted(SERVABLE)))
    idle = select(BLOBS).where(BLOBS.c.touched_at <= before, ~is_needed)
    with database.write() as connection:
        forget_old_calls(connection)
        digests = list(connection.execute(idle.order_by(BLOBS.c.digest)).scalars())
    for digest in digests:
        with database.write() as connection:
            # Asked again under the lock, and by another query: one that waits for a lock has seen the versions before.
            connection.execute(select(BLOBS.c.digest).where(BLOBS.c.digest == digest).with_for_update())
            row = connection.execute(idle.where(BLOBS.c.digest == digest)).one_or_none()
            free = None if row is None else blobs.delete(digest)
            if row is None or free is None:
                continue
            _strike(connection, caller, digest)
        free()
        yield CollectedBlob(digest, row.size_bytes)


def _strike(connection: Connection, caller: Caller, digest: str) -> None:
    connection.execute(delete(BLOBS).where(BLOBS.c.digest == digest))
    note(connection, Change(caller, "blob.collect", None, digest))
