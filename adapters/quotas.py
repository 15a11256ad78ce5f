"""How much a tenant may have. Every function works in the caller's transaction and changes nothing.

The bytes that count for a tenant are those that the disk keeps for its sake: of its versions that can be served; and of
those that no longer can, until `collect` has taken them, unless another version that can be served keeps them anyway.
So each blob counts for somebody, each for a tenant once, and publishing and retiring in turn fills no disk.
"""

from sqlalchemy import Connection, exists, func, select

from adapters.callers import TenantLimits
from adapters.errors import ForbiddenError
from adapters.lookups import as_limits, find_tenant
from adapters.schema import ADAPTERS, BLOBS, TENANTS, VERSIONS
from adapters.values import SERVABLE


def limits_of(connection: Connection, tenant_id: int, *, for_update: bool = False) -> TenantLimits:
    """How much a tenant may have; its row locked `for_update` where the database locks rows."""
    query = select(TENANTS.c.limits).where(TENANTS.c.id == tenant_id)
    return as_limits(connection.execute(query.with_for_update() if for_update else query).scalar_one())


def require_place(connection: Connection, tenant: str, adapter: str) -> None:
    """Raise ForbiddenError `quota_exceeded` if this would be one adapter more than the tenant may have."""
    tenant_id = find_tenant(connection, tenant)
    limit = limits_of(connection, tenant_id).max_adapters
    if limit is None:
        return
    names = set(connection.execute(select(ADAPTERS.c.name).where(ADAPTERS.c.tenant_id == tenant_id)).scalars())
    if adapter not in names and len(names) >= limit:
        raise ForbiddenError(
            f"The tenant has {len(names)} adapters, and may have {limit}: publish versions of those, or ask for more.",
            code="quota_exceeded",
        )


def require_room(connection: Connection, tenant_id: int, digest: str, size_bytes: int) -> None:
    """Raise ForbiddenError `quota_exceeded` if with these bytes the tenant would have more than it may.

    For whoever makes a version servable, or brings its bytes, and has the tenant's row locked: of two that would take
    the same room, the second sees the first one's version.
    """
    limit = limits_of(connection, tenant_id).max_bytes
    if limit is None:
        return
    total = size_bytes + _kept_bytes(connection, tenant_id, but=digest)
    if total > limit:
        raise ForbiddenError(
            f"With this version the tenant would have {total} bytes, and may have {limit}: retire what is not needed; "
            "its bytes count until they are collected. Or ask for more.",
            code="quota_exceeded",
        )


def _kept_bytes(connection: Connection, tenant_id: int, *, but: str) -> int:
    is_servable = VERSIONS.c.state.in_(sorted(SERVABLE))
    same = VERSIONS.alias("same")
    is_needed = exists().where(same.c.digest == VERSIONS.c.digest, same.c.state.in_(sorted(SERVABLE)))
    kept = (
        select(VERSIONS.c.digest)
        .join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id)
        .where(ADAPTERS.c.tenant_id == tenant_id, is_servable | ~is_needed)
    )
    query = select(func.sum(BLOBS.c.size_bytes)).where(BLOBS.c.digest.in_(kept), BLOBS.c.digest != but)
    return int(connection.execute(query).scalar() or 0)
