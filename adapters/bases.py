"""The base models that the registry knows. They belong to no tenant: the platform adds them, every admin sees them.

Invariant: no base is called as an adapter is. A request names either in one field, and the base would answer it.
"""

import builtins
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from adapters.access import Action, allow
from adapters.database import Database
from adapters.errors import ConflictError, NotFoundError
from adapters.names import could_mean, quoted
from adapters.schema import ADAPTERS, BASES, TENANTS
from adapters.values import Base, Caller, Module


class Bases:
    """`registry.bases`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, caller: Caller, base: Base) -> Base:
        """Enter a base, or say anew what is known of the one with this fingerprint. Platform only.

        Two bases may share a name: it means the one that was entered last.

        Raises:
            ConflictError: `name_taken_by_adapter`, whichever tenant has it.
        """
        allow(caller, Action.OPERATE)
        columns = {
            "name": base.name,
            "path": base.path,
            "modules": {name: [module.in_features, module.out_features] for name, module in base.modules.items()},
            "chat_template_digest": base.chat_template_digest,
            "parameter_count": base.parameter_count,
            "size_bytes": base.size_bytes,
            "created_at": base.created_at,
        }
        with self._database.write() as connection:
            _require_no_adapter_called(connection, base.name)
            renewed = connection.execute(update(BASES).where(BASES.c.fingerprint == base.fingerprint).values(columns))
            if not renewed.rowcount:
                connection.execute(insert(BASES).values(fingerprint=base.fingerprint, **columns))
        return base

    def list(self, caller: Caller) -> builtins.list[Base]:
        """Every base, the newest first."""
        allow(caller, Action.MANAGE)
        return self._select()

    def find(self, reference: str) -> Base:
        """The base with this fingerprint, name or path. Raises NotFoundError `base_not_found`, naming the others."""
        known = self._select()
        path = str(Path(reference).absolute()) if "\0" not in reference else ""
        for base in known:
            if base.fingerprint == reference:
                return base
        for base in known:
            if base.name == reference or base.path in {reference, path}:
                return base
        names = ", ".join(sorted({base.name for base in known})) or "none"
        raise NotFoundError(
            f"The registry has no base {quoted(reference)}. It has: {names}. Enter one with `lorikeet base SOURCE`.",
            code="base_not_found",
        )

    def _select(self) -> builtins.list[Base]:
        with self._database.read() as connection:
            rows = connection.execute(select(BASES).order_by(BASES.c.created_at.desc(), BASES.c.id.desc()))
            return [_as_base(row) for row in rows]


def require_no_base_called(connection: Connection, tenant: str, adapter: str) -> None:
    """Raise ConflictError `name_taken_by_base` if a request for the adapter would be one for a base."""
    if any(could_mean(name, tenant, adapter) for name in connection.execute(select(BASES.c.name)).scalars()):
        raise ConflictError(
            f"A base model is called {quoted(adapter)}, and a request by that name means the base: choose another.",
            code="name_taken_by_base",
        )


def _require_no_adapter_called(connection: Connection, name: str) -> None:
    # Every tenant's row, as a publish locks its own: no adapter begins to exist while this looks.
    connection.execute(select(TENANTS.c.id).order_by(TENANTS.c.id).with_for_update())
    called = select(TENANTS.c.name.label("tenant"), ADAPTERS.c.name).join(TENANTS, TENANTS.c.id == ADAPTERS.c.tenant_id)
    if any(could_mean(name, row.tenant, row.name) for row in connection.execute(called)):
        raise ConflictError(
            f"An adapter is called {quoted(name)}, and a request by that name means it: give the base another name.",
            code="name_taken_by_adapter",
        )


def _as_base(row: Row[Any]) -> Base:
    return Base(
        name=row.name,
        fingerprint=row.fingerprint,
        path=row.path,
        modules={name: Module(*sizes) for name, sizes in row.modules.items()},
        chat_template_digest=row.chat_template_digest,
        parameter_count=row.parameter_count,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
    )
