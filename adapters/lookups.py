"""From names to rows, and from rows to values. Every function works in the caller's transaction and changes nothing."""

from typing import Any

from sqlalchemy import Connection, Row, Select, select

from adapters.access import no_such_tenant
from adapters.errors import NotFoundError
from adapters.manifests import load_manifest
from adapters.names import is_name, quoted
from adapters.schema import ADAPTERS, ALIASES, PROMOTIONS, TENANTS, VERSIONS
from adapters.values import Alias, Version, VersionState


def find_tenant(connection: Connection, name: str, *, for_update: bool = False) -> int:
    """The tenant's id; its row locked `for_update` where the database locks rows. Raises NotFoundError."""
    query = select(TENANTS.c.id).where(TENANTS.c.name == name)
    # What can't be a name is never sent: PostgreSQL refuses some text (NUL, lone surrogates) with an error of its own.
    found = connection.execute(_locked(query, for_update=for_update)).scalar() if is_name(name) else None
    if found is None:
        raise no_such_tenant(name)
    return int(found)


def find_adapter(connection: Connection, tenant: str, name: str, *, for_update: bool = False) -> int:
    """The adapter's id; its row locked `for_update` where the database locks rows. Raises NotFoundError."""
    query = select(ADAPTERS.c.id).where(
        ADAPTERS.c.tenant_id == find_tenant(connection, tenant),
        ADAPTERS.c.name == name,
    )
    found = connection.execute(_locked(query, for_update=for_update)).scalar() if is_name(name) else None
    if found is None:
        raise NotFoundError(f"The tenant has no adapter {quoted(name)}.", code="adapter_not_found")
    return int(found)


def find_version(connection: Connection, adapter_id: int, number: int) -> Row[Any]:
    """The row of a version. Raises NotFoundError."""
    row = connection.execute(
        select(VERSIONS).where(VERSIONS.c.adapter_id == adapter_id, VERSIONS.c.number == _sql_integer(number))
    ).one_or_none()
    if row is None:
        raise NotFoundError(f"The adapter has no version {number}.", code="version_not_found")
    return row


def as_version(row: Row[Any], tenant: str, adapter: str) -> Version:
    """A row of `versions` as a value."""
    return Version(
        id=row.id,
        tenant=tenant,
        adapter=adapter,
        number=row.number,
        state=VersionState(row.state),
        manifest=load_manifest(row.manifest),
        warnings=tuple(row.warnings),
        origin=row.origin,
        created_at=row.created_at,
        created_by=row.created_by,
    )


def select_aliases() -> Select[Any]:
    """Every alias with the number of the version that it points at: what `as_alias` reads."""
    return (
        select(ALIASES, VERSIONS.c.number, PROMOTIONS.c.version_id, PROMOTIONS.c.replaced_id)
        .join(PROMOTIONS, PROMOTIONS.c.id == ALIASES.c.promotion_id)
        .join(VERSIONS, VERSIONS.c.id == PROMOTIONS.c.version_id)
    )


def as_alias(row: Row[Any]) -> Alias:
    """A row of `select_aliases` as a value."""
    return Alias(name=row.name, version=row.number, revision=row.revision, moved_at=row.moved_at, moved_by=row.moved_by)


def _locked(query: Select[Any], *, for_update: bool) -> Select[Any]:
    return query.with_for_update() if for_update else query


def _sql_integer(number: int) -> int:
    """`number`, or 0 (no version has it) where SQL's integers end."""
    return number if 0 < number < 2**31 else 0
