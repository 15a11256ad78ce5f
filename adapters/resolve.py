"""From the name in a request to the one version that will answer it."""

from sqlalchemy import select

from adapters.access import Action, allow, no_such_target
from adapters.aliases import SERVABLE
from adapters.database import Database
from adapters.names import Reference
from adapters.schema import ADAPTERS, ALIASES, PROMOTIONS, TENANTS, VERSIONS
from adapters.values import Caller, Target, VersionState


def resolve(database: Database, caller: Caller, name: str) -> Target:
    """The version that `name` means for `caller` at this moment.

    Raises:
        ForbiddenError: the caller may not ask adapters at all.
        InvalidError: `invalid_adapter_name`: nothing can be called that.
        NotFoundError: `adapter_not_found`, in the same words whether it is unknown, another's, rejected or retired.
    """
    # Whose it is comes first, and from the caller: a name may repeat the tenant, it can't choose one.
    allow(caller, Action.ASK)
    reference = Reference.parse(name)
    tenant = reference.tenant or caller.tenant
    allow(caller, Action.ASK, tenant)

    found = (
        select(VERSIONS)
        .join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id)
        .join(TENANTS, TENANTS.c.id == ADAPTERS.c.tenant_id)
        .where(TENANTS.c.name == tenant, ADAPTERS.c.name == reference.adapter, VERSIONS.c.state.in_(sorted(SERVABLE)))
    )
    if isinstance(reference.selector, int):
        found = found.where(VERSIONS.c.number == reference.selector)
    else:
        found = (
            found.join(PROMOTIONS, PROMOTIONS.c.version_id == VERSIONS.c.id)
            .join(ALIASES, ALIASES.c.promotion_id == PROMOTIONS.c.id)
            .where(ALIASES.c.name == reference.selector)
        )
    with database.read() as connection:
        row = connection.execute(found).one_or_none()
    if row is None or tenant is None:
        raise no_such_target()
    return Target(
        version_id=row.id,
        tenant=tenant,
        adapter=reference.adapter,
        number=row.number,
        digest=row.digest,
        rank=row.manifest["rank"],
        base_fingerprint=row.base_fingerprint,
        is_probed=row.state == VersionState.READY,
    )
