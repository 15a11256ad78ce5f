"""The owners of adapters and keys, and how much each may have and use."""

import builtins
from collections.abc import Collection
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from adapters.access import Action, allow, no_such_tenant
from adapters.callers import Caller, Scope, Tenant, TenantLimits
from adapters.changes import Change, Done, change
from adapters.database import Database
from adapters.errors import ConflictError, InvalidError
from adapters.lookups import DEFAULT_PAGE, as_limits, find_tenant, require_cursor, require_page
from adapters.names import Reference, is_name, require_tenant_name
from adapters.resolve import find_target
from adapters.schema import TENANTS


class Tenants:
    """`registry.tenants`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, caller: Caller, name: str) -> Tenant:
        """Add a tenant, without limits. Platform only.

        Raises:
            InvalidError: `invalid_tenant_name`.
            ConflictError: `tenant_exists`.
        """
        allow(caller, Action.OPERATE)
        require_tenant_name(name)
        what = Change(caller, "tenant.create", name, name)
        return change(self._database, what, partial(_create, name), Tenant)

    def set_limits(
        self, caller: Caller, name: str, limits: TenantLimits, *, only: Collection[str] | None = None
    ) -> Tenant:
        """Say anew how much a tenant may have and use. What it has already stays. Platform only.

        `only`: the names of the limits that are meant; the others stay as they are.

        Raises:
            InvalidError: `invalid_limits`.
            NotFoundError: `tenant_not_found`.
        """
        allow(caller, Action.OPERATE)
        stated = {key: limit for key, limit in asdict(limits).items() if only is None or key in only}
        if any(type(limit) is not int or not 0 <= limit < 2**53 for limit in stated.values() if limit is not None):
            raise InvalidError("A limit is a whole number from 0, or none.", code="invalid_limits")
        if stated.get("weight") == 0:
            raise InvalidError(
                "A tenant's weight is 1 at least: for none at all, limit its requests.", code="invalid_limits"
            )
        what = Change(caller, "tenant.limit", name, name, stated)
        return change(self._database, what, partial(_set_limits, name, stated), Tenant)

    def set_default(self, caller: Caller, name: str, adapter: str | None) -> Tenant:
        """Say what those requests of a tenant ask that name nothing: `support`, `support@canary`; None: the base.

        It has to mean something to the tenant now, its own or granted. What it means later, each request looks up.

        Raises:
            InvalidError: `invalid_adapter_name`: nothing can be called that.
            NotFoundError: `tenant_not_found`; `adapter_not_found`: it means nothing to the tenant.
        """
        allow(caller, Action.MANAGE, name)
        reference = None if adapter is None else Reference.parse(adapter)
        what = Change(caller, "tenant.default", name, name, {"default_adapter": adapter})
        return change(self._database, what, partial(_set_default, name, adapter, reference), Tenant)

    def get(self, caller: Caller, name: str) -> Tenant:
        """One tenant. Raises NotFoundError `tenant_not_found`."""
        allow(caller, Action.READ, name)
        query = select(TENANTS).where(TENANTS.c.name == name)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none() if is_name(name) else None
        if row is None:
            raise no_such_tenant(name)
        return _as_tenant(row)

    def list(self, caller: Caller, *, after: str | None = None, limit: int = DEFAULT_PAGE) -> builtins.list[Tenant]:
        """By name: the tenants for the platform, its own for a tenant's admin.

        At most `limit`, those whose names come after `after`. Raises InvalidError `invalid_limit` or `invalid_cursor`.
        """
        allow(caller, Action.MANAGE)
        require_page(limit)
        query = select(TENANTS).order_by(TENANTS.c.name).limit(limit)
        if caller.tenant is not None:
            query = query.where(TENANTS.c.name == caller.tenant)
        if after is not None:
            query = query.where(TENANTS.c.name > require_cursor(after))
        with self._database.read() as connection:
            return [_as_tenant(row) for row in connection.execute(query)]


def _create(name: str, connection: Connection) -> Tenant:
    try:
        row = connection.execute(insert(TENANTS).values(name=name, created_at=datetime.now(UTC)).returning(TENANTS))
    except IntegrityError as error:
        raise ConflictError(f"There is a tenant {name!r} already.", code="tenant_exists") from error
    return _as_tenant(row.one())


def _set_limits(name: str, stated: dict[str, Any], connection: Connection) -> Done[Tenant]:
    tenant_id = find_tenant(connection, name, for_update=True)
    before = connection.execute(select(TENANTS.c.limits).where(TENANTS.c.id == tenant_id)).scalar_one()
    limits = {key: limit for key, limit in {**before, **stated}.items() if limit is not None}
    renewed = update(TENANTS).where(TENANTS.c.id == tenant_id).values(limits=limits).returning(TENANTS)
    return Done(_as_tenant(connection.execute(renewed).one()), is_changed=limits != before)


def _set_default(name: str, adapter: str | None, reference: Reference | None, connection: Connection) -> Done[Tenant]:
    tenant_id = find_tenant(connection, name, for_update=True)
    if reference is not None:
        find_target(connection, Caller(name, frozenset({Scope.INFER}), name="a tenant's request"), reference)
    before = connection.execute(select(TENANTS.c.default_adapter).where(TENANTS.c.id == tenant_id)).scalar_one()
    renewed = update(TENANTS).where(TENANTS.c.id == tenant_id).values(default_adapter=adapter).returning(TENANTS)
    return Done(_as_tenant(connection.execute(renewed).one()), is_changed=adapter != before)


def _as_tenant(row: Row[Any]) -> Tenant:
    return Tenant(row.name, row.created_at, as_limits(row.limits), row.default_adapter)
