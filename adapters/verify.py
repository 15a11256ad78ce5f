"""Reads every version's bytes again and derives their digests anew."""

from collections import defaultdict
from collections.abc import Iterator

from sqlalchemy import select

from adapters.access import Action, allow
from adapters.database import Database
from adapters.schema import ADAPTERS, TENANTS, VERSIONS
from adapters.store import Store
from adapters.values import Caller, VerifiedBlob


def verify(database: Database, store: Store, caller: Caller) -> Iterator[VerifiedBlob]:
    """Every blob that a version points at, by digest.

    A damaged one is set aside: its versions answer 503 from then on, until the same bytes are published again.

    Raises:
        ForbiddenError: the caller is not the platform.
        StorageError: the disk or the database failed.
    """
    allow(caller, Action.OPERATE)
    query = (
        select(VERSIONS.c.digest, TENANTS.c.name.label("tenant"), ADAPTERS.c.name, VERSIONS.c.number)
        .join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id)
        .join(TENANTS, TENANTS.c.id == ADAPTERS.c.tenant_id)
        .order_by(TENANTS.c.name, ADAPTERS.c.name, VERSIONS.c.number)
    )
    labels: dict[str, list[str]] = defaultdict(list)
    with database.read() as connection:
        for row in connection.execute(query):
            labels[row.digest].append(f"{row.tenant}/{row.name}@{row.number}")
    # Outside the transaction: reading gigabytes must not hold the database's snapshot.
    return (VerifiedBlob(digest, store.check(digest), tuple(versions)) for digest, versions in sorted(labels.items()))
