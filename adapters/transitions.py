"""How a version's state changes once it is there. Every function works in the caller's transaction.

Locks are taken in the order that entry.py states.
"""

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, select, update

from adapters.bases import require_no_adapters_on
from adapters.callers import Caller
from adapters.changes import Change, Done, note
from adapters.entry import ProbeVerdict, require_blob, set_probed, touch
from adapters.errors import ConflictError, NotFoundError
from adapters.lookups import (
    arms_of,
    as_version,
    find_adapter,
    find_tenant,
    find_version,
    select_aliases,
    version_subject,
)
from adapters.quotas import require_room
from adapters.schema import ADAPTERS, ALIASES, TENANTS, VERSIONS
from adapters.storage import Blobs
from adapters.values import Kind, Version, VersionState

_REASON_LENGTH: Final = 500
"""Of what an engine says, as much as the audit keeps."""


def retire(tenant: str, adapter: str, number: int, connection: Connection) -> Done[Version]:
    """Forbid new resolves. Raises ConflictError `version_in_use` or `base_in_use`."""
    tenant_id, row = _find(connection, tenant, adapter, number)
    aliases = connection.execute(select_aliases().where(ALIASES.c.adapter_id == row.adapter_id)).all()
    pointing = sorted(alias.name for alias in aliases if number in {arm.version for arm in arms_of(alias)})
    if pointing:
        raise ConflictError(
            f"Version {number} is what {', '.join(pointing)} points at: promote another one first, or remove the "
            "alias.",
            code="version_in_use",
        )
    shadowed = sorted(alias.name for alias in aliases if alias.shadow and alias.shadow["version"] == number)
    if shadowed:
        raise ConflictError(f"Version {number} shadows {', '.join(shadowed)}: end that first.", code="version_in_use")
    if row.state == VersionState.RETIRED:
        return Done(as_version(row, tenant, adapter), is_changed=False)
    require_no_adapters_on(connection, tenant_id, row)
    touch(connection, row.digest, row.size_bytes)
    row = _set(connection, row, state=VersionState.RETIRED.value, retired_at=datetime.now(UTC))
    return Done(as_version(row, tenant, adapter))


def restore(tenant: str, adapter: str, number: int, blobs: Blobs, connection: Connection) -> Done[Version]:
    """Allow them again. Raises ConflictError `blob_collected` and ForbiddenError `quota_exceeded`."""
    tenant_id, row = _find(connection, tenant, adapter, number)
    if row.state != VersionState.RETIRED:
        return Done(as_version(row, tenant, adapter), is_changed=False)
    require_room(connection, tenant_id, row.digest, row.size_bytes)
    require_blob(connection, blobs, row.digest)
    is_model = Kind(row.manifest["kind"]).is_model
    state = VersionState.READY if is_model else VersionState.UNPROBED
    return Done(as_version(_set(connection, row, state=state.value, retired_at=None), tenant, adapter))


def annotate(tenant: str, adapter: str, number: int, said: dict[str, Any], connection: Connection) -> Done[Version]:
    """Write what people should know of it."""
    _, row = _find(connection, tenant, adapter, number)
    is_changed = any(getattr(row, name) != value for name, value in said.items())
    row = _set(connection, row, **said) if is_changed else row
    return Done(as_version(row, tenant, adapter), is_changed=is_changed)


def record_probe(caller: Caller, version_id: int, verdict: ProbeVerdict, connection: Connection) -> Version:
    """Settle an unprobed version, with a row in the audit; one that is settled already stays as it is, and has none.

    Raises:
        NotFoundError: `version_not_found`.
    """
    named = connection.execute(
        select(TENANTS.c.name.label("tenant"), ADAPTERS.c.name, VERSIONS.c.number)
        .join(ADAPTERS, ADAPTERS.c.tenant_id == TENANTS.c.id)
        .join(VERSIONS, VERSIONS.c.adapter_id == ADAPTERS.c.id)
        .where(VERSIONS.c.id == version_id)
    ).one_or_none()
    if named is None:
        raise NotFoundError("There is no such version here, or there is none any more.", code="version_not_found")
    _, row = _find(connection, named.tenant, named.name, named.number)
    if row.state == VersionState.UNPROBED:
        row = set_probed(connection, row, verdict)
        asked = {"is_accepted": verdict.is_accepted, "reason": verdict.reason[:_REASON_LENGTH]}
        subject = version_subject(named.name, named.number)
        note(connection, Change(caller, "version.probe", named.tenant, subject, asked))
    return as_version(row, named.tenant, named.name)


def _find(connection: Connection, tenant: str, adapter: str, number: int) -> tuple[int, Row[Any]]:
    """The tenant's id and the version's row, which nobody changes meanwhile: the tenant and the adapter are locked."""
    tenant_id = find_tenant(connection, tenant, for_update=True)
    return tenant_id, find_version(connection, find_adapter(connection, tenant, adapter, for_update=True), number)


def _set(connection: Connection, row: Row[Any], **columns: Any) -> Row[Any]:  # noqa: ANN401  — a row's
    changed = update(VERSIONS).where(VERSIONS.c.id == row.id).values(columns).returning(VERSIONS)
    return connection.execute(changed).one()
