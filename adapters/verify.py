"""Reads every version's bytes again and derives their digests anew."""

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select

from adapters.access import Action, allow
from adapters.callers import Caller
from adapters.database import Database
from adapters.errors import StorageError
from adapters.schema import ADAPTERS, BLOBS, TENANTS, VERSIONS
from adapters.storage import Blobs
from adapters.values import BlobState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VerifiedBlob:
    """Bytes that were read again, and the full names of the versions that are made of them."""

    digest: str
    state: BlobState
    versions: tuple[str, ...]


def verify(database: Database, blobs: Blobs, caller: Caller) -> Iterator[VerifiedBlob]:
    """Every blob that a version points at, by digest.

    A damaged one is set aside: its versions answer 503 from then on, until the same bytes are published again. One that
    the disk or the store fails to give is told as such, and the walk goes on.

    Raises:
        ForbiddenError: the caller is not the platform.
        StorageError: the database failed.
    """
    allow(caller, Action.OPERATE)
    query = (
        select(VERSIONS.c.digest, TENANTS.c.name.label("tenant"), ADAPTERS.c.name, VERSIONS.c.number)
        .join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id)
        .join(TENANTS, TENANTS.c.id == ADAPTERS.c.tenant_id)
        .join(BLOBS, BLOBS.c.digest == VERSIONS.c.digest)  # what was collected is not missed
        .order_by(TENANTS.c.name, ADAPTERS.c.name, VERSIONS.c.number)
    )
    labels: dict[str, list[str]] = defaultdict(list)
    with database.read() as connection:
        for row in connection.execute(query):
            labels[row.digest].append(f"{row.tenant}/{row.name}@{row.number}")
    # Outside the transaction: reading gigabytes must not hold the database's snapshot.
    states = ((digest, _state(database, blobs, digest)) for digest in sorted(labels))
    return (VerifiedBlob(digest, state, tuple(labels[digest])) for digest, state in states if state is not None)


def _state(database: Database, blobs: Blobs, digest: str) -> BlobState | None:
    """What a blob is, or None: it was collected after it was listed."""
    state = _read(blobs, digest)
    if state is not BlobState.MISSING and state is not BlobState.UNREADABLE:
        return state
    with database.write() as connection:  # who takes it away, or has brought it, at this moment is waited for
        row = connection.execute(select(BLOBS.c.digest).where(BLOBS.c.digest == digest).with_for_update()).first()
    if row is None:
        return None
    return _read(blobs, digest) if state is BlobState.MISSING else state


def _read(blobs: Blobs, digest: str) -> BlobState:
    try:
        return blobs.check(digest)
    except StorageError as error:
        log.warning("%s can't be read: %s", digest, error)
        return BlobState.UNREADABLE
