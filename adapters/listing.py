"""Adapters, each with its aliases: a tenant's own, and those that others granted it."""

import builtins
from collections import defaultdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, exists, func, select

from adapters.access import Action, allow
from adapters.callers import Caller, GrantedAdapter
from adapters.database import Database
from adapters.lookups import (
    DEFAULT_PAGE,
    as_alias,
    find_adapter,
    find_tenant,
    require_cursor,
    require_page,
    select_aliases,
)
from adapters.names import LIVE
from adapters.schema import ADAPTERS, ALIASES, GRANTS, PROMOTIONS, TENANTS, VERSIONS
from adapters.values import Adapter, Alias, Base


class Adapters:
    """`registry.adapters`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, caller: Caller, tenant: str, adapter: str) -> Adapter:
        """One adapter. Raises NotFoundError `tenant_not_found` or `adapter_not_found`."""
        allow(caller, Action.READ, tenant)
        with self._database.read() as connection:
            adapter_id = find_adapter(connection, tenant, adapter)
            return _read(connection, _select_adapters().where(ADAPTERS.c.id == adapter_id))[0]

    def list(
        self,
        caller: Caller,
        tenant: str,
        *,
        after: str | None = None,
        limit: int = DEFAULT_PAGE,
        live_on: Base | None = None,
    ) -> builtins.list[Adapter]:
        """A tenant's adapters by name: at most `limit`, those whose names come after `after`.

        With `live_on`, a base, those alone whose bare name a server of that base can answer.

        Raises:
            InvalidError: `invalid_limit` or `invalid_cursor`.
            NotFoundError: `tenant_not_found`.
        """
        allow(caller, Action.READ, tenant)
        require_page(limit)
        with self._database.read() as connection:
            page = _select_adapters().where(ADAPTERS.c.tenant_id == find_tenant(connection, tenant))
            if after is not None:
                page = page.where(ADAPTERS.c.name > require_cursor(after))
            if live_on is not None:
                page = page.where(_is_live_on(live_on))
            return _read(connection, page.order_by(ADAPTERS.c.name).limit(limit))

    def granted(
        self,
        caller: Caller,
        *,
        after: str | None = None,
        limit: int = DEFAULT_PAGE,
        live_on: Base | None = None,
    ) -> builtins.list[GrantedAdapter]:
        """What other tenants granted to the caller's, by their names and its own.

        At most `limit`, those that come after `after`: the label of one, `acme/support`. `live_on` as for `list`.

        Raises:
            InvalidError: `invalid_limit` or `invalid_cursor`.
        """
        allow(caller, Action.READ)
        require_page(limit)
        is_live = exists().where(ALIASES.c.adapter_id == ADAPTERS.c.id, ALIASES.c.name == LIVE)
        page = (
            select(TENANTS.c.name.label("tenant"), ADAPTERS.c.name, ADAPTERS.c.created_at, is_live.label("is_live"))
            .select_from(GRANTS)
            .join(ADAPTERS, ADAPTERS.c.id == GRANTS.c.adapter_id)
            .join(TENANTS, TENANTS.c.id == ADAPTERS.c.tenant_id)
            .where(GRANTS.c.grantee == (caller.tenant or ""))
            .order_by(TENANTS.c.name, ADAPTERS.c.name)
        )
        if after is not None:
            owner, _, name = after.partition("/")
            same = (TENANTS.c.name == require_cursor(owner)) & (ADAPTERS.c.name > require_cursor(name))
            page = page.where((TENANTS.c.name > owner) | same)
        if live_on is not None:
            page = page.where(_is_live_on(live_on))
        with self._database.read() as connection:
            rows = connection.execute(page.limit(limit))
            return [GrantedAdapter(row.tenant, row.name, row.created_at, is_live=row.is_live) for row in rows]


def _is_live_on(base: Base) -> ColumnElement[bool]:
    """Whether an adapter's bare name means this base or an adapter on it: all arms of a split are of one."""
    return exists().where(
        ALIASES.c.adapter_id == ADAPTERS.c.id,
        ALIASES.c.name == LIVE,
        PROMOTIONS.c.id == ALIASES.c.promotion_id,
        VERSIONS.c.id == PROMOTIONS.c.version_id,
        (VERSIONS.c.model_fingerprint == base.fingerprint)
        | (VERSIONS.c.model_fingerprint.is_(None) & VERSIONS.c.base_fingerprint.in_(base.adapters_of)),
    )


def _select_adapters() -> Select[Any]:
    count = select(func.count()).where(VERSIONS.c.adapter_id == ADAPTERS.c.id).scalar_subquery()
    return select(ADAPTERS, TENANTS.c.name.label("tenant"), count.label("version_count")).join(
        TENANTS, TENANTS.c.id == ADAPTERS.c.tenant_id
    )


def _read(connection: Connection, page: Select[Any]) -> list[Adapter]:
    rows = connection.execute(page).all()
    aliases: dict[int, list[Alias]] = defaultdict(list)
    of_page = select_aliases().where(ALIASES.c.adapter_id.in_([row.id for row in rows])).order_by(ALIASES.c.name)
    for alias in connection.execute(of_page):
        aliases[alias.adapter_id].append(as_alias(alias))
    return [
        Adapter(
            tenant=row.tenant,
            name=row.name,
            created_at=row.created_at,
            version_count=row.version_count,
            aliases=tuple(aliases[row.id]),
        )
        for row in rows
    ]
