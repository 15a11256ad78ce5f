"""Who did what. The rows are written by adapters/changes.py, with each change; nothing takes one away."""

from dataclasses import replace

from sqlalchemy import select

from adapters.access import Action, allow
from adapters.callers import Caller, signature_of
from adapters.database import Database
from adapters.lookups import as_bound, find_tenant, require_page
from adapters.schema import AUDIT
from adapters.values import AuditRow


def read_audit(
    database: Database, caller: Caller, *, tenant: str | None, before: int | None, limit: int
) -> list[AuditRow]:
    """The newest `limit` rows, or those that come before the row with the id `before`; newest first.

    A tenant's admin reads of its own tenant's things, and finds no names of the platform's; the platform of one
    tenant's, or of all.

    Raises:
        NotFoundError: `tenant_not_found`.
        InvalidError: `invalid_limit`.
    """
    whose = caller.tenant if tenant is None else tenant
    allow(caller, Action.MANAGE, whose)
    require_page(limit)
    query = select(AUDIT).order_by(AUDIT.c.id.desc()).limit(limit)
    with database.read() as connection:
        if whose is not None:
            find_tenant(connection, whose)
            query = query.where(AUDIT.c.tenant == whose)
        if before is not None:
            query = query.where(AUDIT.c.id < as_bound(before))
        rows = [AuditRow(**row._mapping) for row in connection.execute(query)]  # noqa: SLF001  — SQLAlchemy's public way
    return (
        rows
        if caller.tenant is None
        else [replace(row, actor=signature_of(row.actor, row.actor_tenant)) for row in rows]
    )
