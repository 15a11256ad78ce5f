"""The rows of uploads in parts. Every function works in the caller's transaction."""

import re
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select, update

from adapters.bases import require_no_base_called
from adapters.changes import Change, Done
from adapters.entry import require_kind
from adapters.errors import ConflictError, NotFoundError
from adapters.limits import Limits
from adapters.lookups import find_tenant
from adapters.quotas import limits_of, require_place
from adapters.schema import UPLOAD_FILES, UPLOADS, VERSIONS
from adapters.values import Kind, Upload

MAX_OPEN: Final = 4
"""Uploads that a tenant may have begun and not ended."""
BESIDE_WEIGHTS: Final = 1 << 27
"""Bytes that an upload may have beyond its weights. A model's tokenizer and index are the most of it."""
UPLOAD_ID: Final = re.compile(r"upload-[0-9a-f]{32}")


def add_upload(what: Change, upload_id: str, kind: Kind, connection: Connection) -> Done[Upload]:
    """Enter an upload of a version of the adapter `what.subject`.

    Raises:
        NotFoundError: `tenant_not_found`.
        ConflictError: `too_many_uploads`; `name_taken_by_base`; `kind_mismatch`.
        ForbiddenError: `quota_exceeded`.
    """
    tenant, adapter = what.tenant or "", what.subject
    tenant_id = find_tenant(connection, tenant, for_update=True)
    require_no_base_called(connection, tenant, adapter)
    require_place(connection, tenant, adapter)
    require_kind(connection, tenant, adapter, kind)
    is_open = _of_tenant(tenant_id)
    if (connection.execute(select(func.count()).where(is_open)).scalar() or 0) >= MAX_OPEN:
        raise ConflictError(
            f"The tenant has {MAX_OPEN} uploads that were not finished: finish or cancel one of them first.",
            code="too_many_uploads",
        )
    now = datetime.now(UTC)
    columns = {"adapter": adapter, "kind": kind.value, "created_at": now, "touched_at": now}
    row = connection.execute(
        insert(UPLOADS)
        .values(id=upload_id, tenant_id=tenant_id, created_by=what.caller.signature, **columns)
        .returning(UPLOADS)
    ).one()
    return Done(as_upload(connection, row, tenant), detail={"upload": upload_id})


def find_upload(connection: Connection, tenant: str, upload_id: str) -> Row[Any]:
    """The row of a tenant's upload. Raises NotFoundError."""
    is_it = (UPLOADS.c.id == upload_id) & (UPLOADS.c.tenant_id == find_tenant(connection, tenant))
    row = connection.execute(select(UPLOADS).where(is_it)).one_or_none() if UPLOAD_ID.fullmatch(upload_id) else None
    if row is None:
        raise no_such_upload()
    return row


def find_open(connection: Connection, tenant: str) -> list[Upload]:
    """A tenant's uploads that were not ended, the oldest first."""
    is_open = _of_tenant(find_tenant(connection, tenant))
    oldest = connection.execute(select(UPLOADS).where(is_open).order_by(UPLOADS.c.created_at, UPLOADS.c.id))
    return [as_upload(connection, row, tenant) for row in oldest.all()]


def room_bytes(connection: Connection, row: Row[Any], limits: Limits, *, for_update: bool = False) -> int:
    """How much more may come of an upload: by its kind, and by what its tenant may have.

    `for_update`: the tenant's row is locked, so that it stays true in this transaction.
    """
    max_bytes = limits_of(connection, row.tenant_id, for_update=for_update).max_bytes
    by_kind = limits.max_model_bytes if Kind(row.kind).is_model else limits.max_upload_bytes
    room = BESIDE_WEIGHTS + by_kind - _came(connection, UPLOADS.c.id == row.id)
    if max_bytes is not None:
        room = min(room, BESIDE_WEIGHTS + max_bytes - _came(connection, _of_tenant(row.tenant_id)))
    return max(0, room)


def acknowledge(connection: Connection, upload_id: str, name: str, size_bytes: int) -> None:
    """Say that a file has so many bytes now. Raises NotFoundError if the upload has gone."""
    touched = update(UPLOADS).where(UPLOADS.c.id == upload_id).values(touched_at=datetime.now(UTC))
    if not connection.execute(touched).rowcount:
        raise no_such_upload()
    is_it = (UPLOAD_FILES.c.upload_id == upload_id) & (UPLOAD_FILES.c.name == name)
    if not connection.execute(update(UPLOAD_FILES).where(is_it).values(size_bytes=size_bytes)).rowcount:
        connection.execute(insert(UPLOAD_FILES).values(upload_id=upload_id, name=name, size_bytes=size_bytes))


def forget(connection: Connection, which: ColumnElement[bool]) -> list[str]:
    """Remove uploads, with their files' rows. Their ids."""
    ids = list(connection.execute(select(UPLOADS.c.id).where(which)).scalars())
    connection.execute(delete(UPLOAD_FILES).where(UPLOAD_FILES.c.upload_id.in_(ids)))
    connection.execute(delete(UPLOADS).where(UPLOADS.c.id.in_(ids)))
    return ids


def number_of(connection: Connection, row: Row[Any]) -> int | None:
    """The number of the version that an upload became."""
    return connection.execute(select(VERSIONS.c.number).where(VERSIONS.c.id == row.version_id)).scalar()


def as_upload(connection: Connection, row: Row[Any], tenant: str) -> Upload:
    """A row of `uploads`, and those of its files, as a value."""
    number = number_of(connection, row)
    files = connection.execute(
        select(UPLOAD_FILES).where(UPLOAD_FILES.c.upload_id == row.id).order_by(UPLOAD_FILES.c.name)
    )
    return Upload(
        id=row.id,
        tenant=tenant,
        adapter=row.adapter,
        kind=Kind(row.kind),
        files={file.name: file.size_bytes for file in files},
        created_at=row.created_at,
        created_by=row.created_by,
        version=None if number is None else f"{tenant}/{row.adapter}@{number}",
    )


def no_such_upload() -> NotFoundError:
    """Missing, another tenant's, or begun where another home is."""
    return NotFoundError("The tenant has no such upload here, or has none any more.", code="upload_not_found")


def _of_tenant(tenant_id: int) -> ColumnElement[bool]:
    return (UPLOADS.c.tenant_id == tenant_id) & UPLOADS.c.version_id.is_(None)


def _came(connection: Connection, of: ColumnElement[bool]) -> int:
    """How many bytes came of these uploads."""
    sizes = select(func.sum(UPLOAD_FILES.c.size_bytes)).join(UPLOADS, UPLOADS.c.id == UPLOAD_FILES.c.upload_id)
    return int(connection.execute(sizes.where(of)).scalar() or 0)
