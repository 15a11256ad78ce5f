"""The owners of adapters and keys."""

import builtins
from datetime import UTC, datetime

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from adapters.access import Action, allow, no_such_tenant
from adapters.database import Database
from adapters.errors import ConflictError
from adapters.names import is_name, require_tenant_name
from adapters.schema import TENANTS
from adapters.values import Caller, Tenant


class Tenants:
    """`registry.tenants`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, caller: Caller, name: str) -> Tenant:
        """Add a tenant. Platform only.

        Raises:
            InvalidError: `invalid_tenant_name`.
            ConflictError: `tenant_exists`.
        """
        allow(caller, Action.OPERATE)
        require_tenant_name(name)
        tenant = Tenant(name, created_at=datetime.now(UTC))
        with self._database.write() as connection:
            try:
                connection.execute(insert(TENANTS).values(name=name, created_at=tenant.created_at))
            except IntegrityError as error:
                raise ConflictError(f"There is a tenant {name!r} already.", code="tenant_exists") from error
        return tenant

    def get(self, caller: Caller, name: str) -> Tenant:
        """One tenant. Raises NotFoundError `tenant_not_found`."""
        allow(caller, Action.READ, name)
        found = self._select(name) if is_name(name) else []
        if not found:
            raise no_such_tenant(name)
        return found[0]

    def list(self, caller: Caller) -> builtins.list[Tenant]:
        """By name: every tenant for the platform, its own for a tenant's admin."""
        allow(caller, Action.MANAGE)
        return self._select(caller.tenant)

    def _select(self, name: str | None) -> builtins.list[Tenant]:
        query = select(TENANTS.c.name, TENANTS.c.created_at).order_by(TENANTS.c.name)
        with self._database.read() as connection:
            rows = connection.execute(query if name is None else query.where(TENANTS.c.name == name))
            return [Tenant(row.name, row.created_at) for row in rows]
