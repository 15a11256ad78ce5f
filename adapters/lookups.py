"""From names to rows, and from rows to values. Every function works in the caller's transaction and changes nothing."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, func, select

from adapters.access import no_such_tenant, no_such_version
from adapters.callers import TenantLimits
from adapters.errors import InvalidError, NotFoundError
from adapters.manifests import load_manifest
from adapters.names import is_name, quoted
from adapters.schema import ADAPTERS, ALIASES, BLOBS, GRANTS, PROMOTIONS, TENANTS, VERSIONS
from adapters.values import Alias, Arm, Shadow, Version, VersionState

MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100
"""Rows of a list that one call gives."""
_MAX_INTEGER: Final = 2**31 - 1


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
        raise no_such_version(number)
    return row


def version_subject(adapter: str, number: int) -> str:
    """`support@3`, as the audit names a version. Raises NotFoundError, if no version can have this number."""
    if not _sql_integer(number):
        raise no_such_version(number)
    return f"{adapter}@{number}"


def is_granted(connection: Connection, tenant: str, adapter: str, grantee: str | None) -> bool:
    """Whether `grantee` may ask this adapter of another's."""
    query = (
        select(GRANTS.c.id)
        .join(ADAPTERS, ADAPTERS.c.id == GRANTS.c.adapter_id)
        .join(TENANTS, TENANTS.c.id == ADAPTERS.c.tenant_id)
        .where(TENANTS.c.name == tenant, ADAPTERS.c.name == adapter, GRANTS.c.grantee == grantee)
    )
    return grantee is not None and connection.execute(query).first() is not None


def stored_bytes(connection: Connection) -> int:
    """Of all blobs that the registry knows."""
    return int(connection.execute(select(func.coalesce(func.sum(BLOBS.c.size_bytes), 0))).scalar_one())


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
        parents=tuple(row.parents),
        tags=tuple(row.tags),
        note=row.note,
        retired_at=row.retired_at,
    )


def select_aliases() -> Select[Any]:
    """Every alias with what it points at: what `as_alias` reads."""
    return (
        select(ALIASES, VERSIONS.c.number, PROMOTIONS.c.split, PROMOTIONS.c.version_id, PROMOTIONS.c.replaced_id)
        .join(PROMOTIONS, PROMOTIONS.c.id == ALIASES.c.promotion_id)
        .join(VERSIONS, VERSIONS.c.id == PROMOTIONS.c.version_id)
    )


def as_alias(row: Row[Any]) -> Alias:
    """A row of `select_aliases` as a value."""
    return Alias(
        name=row.name,
        arms=arms_of(row),
        revision=row.revision,
        moved_at=row.moved_at,
        moved_by=row.moved_by,
        shadow=as_shadow(row.shadow),
    )


def as_shadow(stored: Mapping[str, Any] | None) -> Shadow | None:
    """An alias's `shadow` as a value."""
    return Shadow(stored["version"], stored["percent"]) if stored else None


def arms_of(row: Row[Any]) -> tuple[Arm, ...]:
    """What a promotion points at, from its `split` and the `number` of its version."""
    return tuple(Arm(*arm) for arm in row.split) if row.split else (Arm(row.number, 1),)


def as_limits(stored: Mapping[str, Any]) -> TenantLimits:
    """A tenant's `limits` as a value; what a later version of this program wrote beside them is left out."""
    known = {field.name for field in fields(TenantLimits)}
    return TenantLimits(**{name: limit for name, limit in stored.items() if name in known})


def require_cursor(after: str) -> str:
    """`after`, if a list by name can go on there. Raises InvalidError `invalid_cursor`."""
    if not is_name(after):
        raise InvalidError("A page goes on after a name of the page before.", code="invalid_cursor")
    return after


def require_page(limit: int) -> None:
    """Raise InvalidError `invalid_limit` unless a page may have `limit` rows."""
    if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
        raise InvalidError(f"A page has 1 to {MAX_PAGE} rows.", code="invalid_limit")


def as_bound(before: int) -> int:
    """The number that a page of the newest ends before, as near to it as SQL's integers come."""
    return max(0, min(before, _MAX_INTEGER))


def _locked(query: Select[Any], *, for_update: bool) -> Select[Any]:
    return query.with_for_update() if for_update else query


def _sql_integer(number: int) -> int:
    """`number`, or 0 (no version has it) where SQL's integers end."""
    return number if type(number) is int and 0 < number <= _MAX_INTEGER else 0
