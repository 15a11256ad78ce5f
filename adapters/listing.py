"""Adapters, each with its aliases: a tenant's own, those that others granted it, and those that are pinned.

A pin is the platform's to give: it takes what all tenants share.
"""

import builtins
from collections import defaultdict
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, exists, func, select, update

from adapters.access import Action, allow
from adapters.callers import Caller, GrantedAdapter
from adapters.changes import Change, Done, change
from adapters.database import Database
from adapters.lookups import (
    DEFAULT_PAGE,
    as_alias,
    as_version,
    find_adapter,
    find_tenant,
    require_cursor,
    require_page,
    select_aliases,
)
from adapters.names import LIVE
from adapters.schema import ADAPTERS, ALIASES, GRANTS, PROMOTIONS, TENANTS, VERSIONS
from adapters.values import SERVABLE, Adapter, Alias, Base, Version


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

    def pin(self, caller: Caller, tenant: str, adapter: str) -> Adapter:
        """Have servers keep what an adapter's bare name means resident. What is pinned stays so. Platform only.

        How many pins a server has room for is its own to say.

        Raises:
            NotFoundError: `tenant_not_found` or `adapter_not_found`.
        """
        return self._set_pin("adapter.pin", caller, tenant, adapter, is_pinned=True)

    def unpin(self, caller: Caller, tenant: str, adapter: str) -> Adapter:
        """Have them no longer do so. Platform only.

        Raises:
            NotFoundError: `tenant_not_found` or `adapter_not_found`.
        """
        return self._set_pin("adapter.unpin", caller, tenant, adapter, is_pinned=False)

    def pinned(self, caller: Caller, base: Base) -> builtins.list[Version]:
        """The versions that pinned adapters' bare names mean, by name, as far as a server of `base` loads them.

        All arms of a split, but for those that can't be served. Platform only.
        """
        allow(caller, Action.OPERATE)
        with self._database.read() as connection:
            adapters = _read(connection, _select_pinned().where(_is_live_on(base)))
            live = {(one.tenant, one.name): {arm.version for arm in one.live.arms} for one in adapters if one.live}
            of_them = (
                select(VERSIONS, ADAPTERS.c.name.label("adapter"), TENANTS.c.name.label("tenant"))
                .join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id)
                .join(TENANTS, TENANTS.c.id == ADAPTERS.c.tenant_id)
                .where(ADAPTERS.c.is_pinned, VERSIONS.c.state.in_(sorted(SERVABLE)))
                .where(VERSIONS.c.model_fingerprint.is_(None))
                .order_by(TENANTS.c.name, ADAPTERS.c.name, VERSIONS.c.number)
            )
            rows = connection.execute(of_them)
            return [
                as_version(row, row.tenant, row.adapter)
                for row in rows
                if row.number in live.get((row.tenant, row.adapter), ())
            ]

    def _set_pin(self, action: str, caller: Caller, tenant: str, adapter: str, *, is_pinned: bool) -> Adapter:
        allow(caller, Action.OPERATE)
        what = Change(caller, action, tenant, adapter)
        work = partial(_set_pin, tenant, adapter, is_pinned=is_pinned)
        return change(self._database, what, work, Adapter)


def _set_pin(tenant: str, adapter: str, connection: Connection, *, is_pinned: bool) -> Done[Adapter]:
    adapter_id = find_adapter(connection, tenant, adapter, for_update=True)
    is_it = ADAPTERS.c.id == adapter_id
    changed = update(ADAPTERS).where(is_it, ADAPTERS.c.is_pinned != is_pinned).values(is_pinned=is_pinned)
    is_changed = bool(connection.execute(changed).rowcount)
    return Done(_read(connection, _select_adapters().where(is_it))[0], is_changed=is_changed)


def _select_pinned() -> Select[Any]:
    return _select_adapters().where(ADAPTERS.c.is_pinned).order_by(TENANTS.c.name, ADAPTERS.c.name)


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
            is_pinned=row.is_pinned,
        )
        for row in rows
    ]
