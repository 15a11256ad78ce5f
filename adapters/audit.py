"""Who did what. The rows are written by adapters/changes.py, with each change; nothing takes one away."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import select

from adapters.access import Action, allow
from adapters.callers import Caller, signature_of
from adapters.database import Database
from adapters.lookups import as_bound, find_tenant, require_page
from adapters.schema import AUDIT


@dataclass(frozen=True, slots=True)
class AuditRow:
    """Who did what, written in the same transaction as the change itself."""

    id: int
    at: datetime
    actor: str
    actor_tenant: str | None
    """None: the platform."""
    action: str
    """`version.publish`, `alias.promote`, `key.revoke` …"""
    tenant: str | None
    """Whose things were changed; None: what all share."""
    subject: str
    """What was changed: `support@3`, `support@live`, a key's id …"""
    detail: Mapping[str, Any]
    """What was asked, and what came of it; `changed: false`, if everything was so already."""
    request_id: str | None


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
