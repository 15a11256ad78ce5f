"""A tenant's adapters, each with its aliases."""

import builtins
from typing import Any

from sqlalchemy import Row, Select, func, select

from adapters.access import Action, allow
from adapters.database import Database
from adapters.lookups import as_alias, find_adapter, find_tenant, select_aliases
from adapters.schema import ADAPTERS, ALIASES, VERSIONS
from adapters.values import Adapter, Alias, Caller


class Adapters:
    """`registry.adapters`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, caller: Caller, tenant: str, adapter: str) -> Adapter:
        """One adapter. Raises NotFoundError `adapter_not_found`."""
        allow(caller, Action.READ, tenant)
        with self._database.read() as connection:
            adapter_id = find_adapter(connection, tenant, adapter)
            row = connection.execute(_select_adapters().where(ADAPTERS.c.id == adapter_id)).one()
            aliases = connection.execute(
                select_aliases().where(ALIASES.c.adapter_id == adapter_id).order_by(ALIASES.c.name)
            )
            return _as_adapter(row, tenant, [as_alias(alias) for alias in aliases])

    def list(self, caller: Caller, tenant: str) -> builtins.list[Adapter]:
        """All of a tenant's adapters, by name."""
        allow(caller, Action.READ, tenant)
        with self._database.read() as connection:
            of_tenant = ADAPTERS.c.tenant_id == find_tenant(connection, tenant)
            rows = connection.execute(_select_adapters().where(of_tenant).order_by(ADAPTERS.c.name)).all()
            aliases: dict[int, builtins.list[Alias]] = {row.id: [] for row in rows}
            for alias in connection.execute(
                select_aliases()
                .join(ADAPTERS, ADAPTERS.c.id == ALIASES.c.adapter_id)
                .where(of_tenant)
                .order_by(ALIASES.c.name)
            ):
                aliases[alias.adapter_id].append(as_alias(alias))
            return [_as_adapter(row, tenant, aliases[row.id]) for row in rows]


def _select_adapters() -> Select[Any]:
    count = select(func.count()).where(VERSIONS.c.adapter_id == ADAPTERS.c.id).scalar_subquery()
    return select(ADAPTERS, count.label("version_count"))


def _as_adapter(row: Row[Any], tenant: str, aliases: list[Alias]) -> Adapter:
    return Adapter(
        tenant=tenant,
        name=row.name,
        created_at=row.created_at,
        version_count=row.version_count,
        aliases=tuple(aliases),
    )
