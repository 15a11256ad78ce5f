"""Adapters shared with other tenants: who is granted one may ask it, as `owner/adapter`, and nothing else.

Invariant: whether the other tenant exists is not told. A grant names it, as a letter names its addressee.
"""

import builtins
from datetime import UTC, datetime
from functools import partial

from sqlalchemy import Connection, Row, delete, insert, select

from adapters.access import Action, allow
from adapters.callers import Caller, Grant
from adapters.changes import Change, Done, change
from adapters.database import Database
from adapters.errors import InvalidError, NotFoundError
from adapters.lookups import DEFAULT_PAGE, find_adapter, require_cursor, require_page
from adapters.names import is_name, quoted, require_tenant_name
from adapters.schema import GRANTS


class Grants:
    """`registry.grants`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def give(self, caller: Caller, tenant: str, adapter: str, grantee: str) -> Grant:
        """Let `grantee` ask all that is and will be of an adapter. What is granted already stays so.

        Raises:
            InvalidError: `invalid_tenant_name`; `invalid_grantee`, for the owner itself.
            NotFoundError: `adapter_not_found`.
        """
        allow(caller, Action.MANAGE, tenant)
        require_tenant_name(grantee)
        if grantee == tenant:
            raise InvalidError("An adapter is its owner's without a grant.", code="invalid_grantee")
        what = Change(caller, "grant.give", tenant, adapter, {"grantee": grantee})
        return change(self._database, what, partial(_give, what, grantee), Grant)

    def take(self, caller: Caller, tenant: str, adapter: str, grantee: str) -> Grant:
        """End a grant: the next request of the other tenant is refused.

        Raises:
            NotFoundError: `adapter_not_found` or `grant_not_found`.
        """
        allow(caller, Action.MANAGE, tenant)
        what = Change(caller, "grant.take", tenant, adapter, {"grantee": quoted(grantee)})
        return change(self._database, what, partial(_take, what, grantee), Grant)

    def list(
        self, caller: Caller, tenant: str, adapter: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> builtins.list[Grant]:
        """Whom an adapter is granted to, by name: at most `limit`, those that come after `after`.

        Raises:
            InvalidError: `invalid_limit` or `invalid_cursor`.
            NotFoundError: `adapter_not_found`.
        """
        allow(caller, Action.MANAGE, tenant)
        require_page(limit)
        with self._database.read() as connection:
            page = select(GRANTS).where(GRANTS.c.adapter_id == find_adapter(connection, tenant, adapter))
            if after is not None:
                page = page.where(GRANTS.c.grantee > require_cursor(after))
            rows = connection.execute(page.order_by(GRANTS.c.grantee).limit(limit))
            return [_as_grant(row, tenant, adapter) for row in rows]


def _give(what: Change, grantee: str, connection: Connection) -> Done[Grant]:
    tenant, adapter = what.tenant or "", what.subject
    adapter_id = find_adapter(connection, tenant, adapter, for_update=True)
    is_it = (GRANTS.c.adapter_id == adapter_id) & (GRANTS.c.grantee == grantee)
    row = connection.execute(select(GRANTS).where(is_it)).one_or_none()
    if row is not None:
        return Done(_as_grant(row, tenant, adapter), is_changed=False)
    columns = {"created_at": datetime.now(UTC), "created_by": what.caller.signature}
    given = insert(GRANTS).values(adapter_id=adapter_id, grantee=grantee, **columns).returning(GRANTS)
    return Done(_as_grant(connection.execute(given).one(), tenant, adapter))


def _take(what: Change, grantee: str, connection: Connection) -> Grant:
    tenant, adapter = what.tenant or "", what.subject
    adapter_id = find_adapter(connection, tenant, adapter, for_update=True)
    is_it = (GRANTS.c.adapter_id == adapter_id) & (GRANTS.c.grantee == grantee)
    row = connection.execute(delete(GRANTS).where(is_it).returning(GRANTS)).one_or_none() if is_name(grantee) else None
    if row is None:
        raise NotFoundError(f"The adapter is not granted to {quoted(grantee)}.", code="grant_not_found")
    return _as_grant(row, tenant, adapter)


def _as_grant(row: Row[tuple[object]], tenant: str, adapter: str) -> Grant:
    return Grant(tenant, adapter, row.grantee, created_at=row.created_at, created_by=row.created_by)
