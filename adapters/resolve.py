"""From the name in a request to the one version that will answer it."""

from uuid import uuid4

from sqlalchemy import Connection, Row, Select, select

from adapters.access import Action, allow, no_such_target
from adapters.callers import Caller
from adapters.database import Database
from adapters.lookups import arms_of, as_shadow, is_granted
from adapters.names import Reference
from adapters.schema import ADAPTERS, ALIASES, PROMOTIONS, TENANTS, VERSIONS
from adapters.splits import choose
from adapters.values import SERVABLE, Arm, Kind, Shadow, Target, VersionState

_BY_NUMBER = select(VERSIONS).join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id)
# From the alias to the version, each by its index: SQLite plans in the order of the joins where it knows no better.
_BY_ALIAS = (
    select(VERSIONS, PROMOTIONS.c.split, ALIASES.c.shadow)
    .select_from(ADAPTERS)
    .join(ALIASES, ALIASES.c.adapter_id == ADAPTERS.c.id)
    .join(PROMOTIONS, PROMOTIONS.c.id == ALIASES.c.promotion_id)
    .join(VERSIONS, VERSIONS.c.id == PROMOTIONS.c.version_id)
)


def resolve(database: Database, caller: Caller, name: str, sticky: str | None) -> Target:
    """The version that `name` means for `caller` at this moment.

    Of an alias that is split, the arm that `sticky` belongs to; None: any, by the weights. An arm that can't be served
    leaves its share to the others.

    Raises:
        ForbiddenError: the caller may not ask adapters at all.
        InvalidError: `invalid_adapter_name`: nothing can be called that.
        NotFoundError: `adapter_not_found`, in the same words whether it is unknown, another's, rejected or retired.
    """
    # Whose it is comes first, and from the caller: a name may repeat the tenant or say who granted it, no more.
    allow(caller, Action.ASK)
    reference = Reference.parse(name)
    with database.read() as connection:
        return find_target(connection, caller, reference, sticky)


def find_target(connection: Connection, caller: Caller, reference: Reference, sticky: str | None = None) -> Target:
    """What `resolve` finds, in the caller's transaction."""
    tenant = reference.tenant or caller.tenant or ""
    granted = tenant != caller.tenant and is_granted(connection, tenant, reference.adapter, caller.tenant)
    allow(caller, Action.ASK, tenant, is_granted=granted)
    row, shadow = _find(connection, tenant, reference, sticky)
    if row is None:
        raise no_such_target()
    return Target(
        version_id=row.id,
        tenant=tenant,
        adapter=reference.adapter,
        number=row.number,
        kind=Kind(row.manifest["kind"]),
        digest=row.digest,
        rank=row.manifest["rank"],
        base_fingerprint=row.base_fingerprint,
        is_probed=row.state == VersionState.READY,
        size_bytes=row.size_bytes,
        shadow=shadow,
    )


def _find(
    connection: Connection, tenant: str, reference: Reference, sticky: str | None
) -> tuple[Row[tuple[object]] | None, Shadow | None]:
    """The version, and the shadow of the alias that it was found by."""
    owner = select(TENANTS.c.id).where(TENANTS.c.name == tenant).scalar_subquery()
    is_it = (ADAPTERS.c.tenant_id == owner) & (ADAPTERS.c.name == reference.adapter)
    if isinstance(reference.selector, int):
        numbered = _BY_NUMBER.where(is_it, VERSIONS.c.number == reference.selector)
        return connection.execute(_servable(numbered)).one_or_none(), None
    pointed = _BY_ALIAS.where(is_it, ALIASES.c.name == reference.selector)
    row = connection.execute(pointed).one_or_none()
    if row is None:
        return None, None
    shadow = as_shadow(row.shadow)
    if not row.split:
        return row if row.state in SERVABLE else None, shadow
    numbers = [arm.version for arm in arms_of(row)]
    of_arms = select(VERSIONS).where(VERSIONS.c.adapter_id == row.adapter_id, VERSIONS.c.number.in_(numbers))
    found = {version.number: version for version in connection.execute(_servable(of_arms))}
    arms: list[Arm] = [arm for arm in arms_of(row) if arm.version in found]
    # Names, not ids: after an import, everybody meets the same arm as before.
    salt = f"{tenant}/{reference.adapter}"
    return found[choose(arms, sticky or uuid4().hex, salt=salt).version] if arms else None, shadow


def _servable(query: Select[tuple[object]]) -> Select[tuple[object]]:
    return query.where(VERSIONS.c.state.in_(sorted(SERVABLE)))
