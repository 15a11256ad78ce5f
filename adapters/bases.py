"""The base models that the registry knows.

The platform adds them and every admin sees them. A `merged` or `full` version that can be served is a base, too, under
its own name, for its tenant and whom it is granted to: whoever published the same model first, each has it as its own.
Invariant: no base is called as an adapter is. A request names either in one field, and the base would answer it.
"""

import builtins
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, exists, func, insert, select, text, true, update

from adapters.access import Action, allow, may_build_on
from adapters.callers import Caller
from adapters.changes import Change, Done, change
from adapters.database import Database, insert_into
from adapters.errors import ConflictError, InvalidError, NotFoundError
from adapters.fingerprint import quantised_from, with_quantised_from
from adapters.names import could_mean, is_storable, quoted, require_base_name, version_named
from adapters.schema import ADAPTERS, BASES, GRANTS, TENANTS, VERSIONS
from adapters.values import SERVABLE, Base, Module

_PATH_LENGTH: Final = 4096
_NAMES_LOCK: Final = 0x6C6F72696B656574
"""Of what begins to be called something, on PostgreSQL: any number that nothing else there locks."""


class Bases:
    """`registry.bases`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, caller: Caller, base: Base) -> Base:
        """Enter a base, or say anew what is known of the one with this fingerprint. Platform only.

        Two bases may share a name: it means the one that was entered last.

        Raises:
            InvalidError: `invalid_base_name` or `invalid_base_path`.
            ConflictError: `name_taken_by_adapter`, whichever tenant has it.
        """
        allow(caller, Action.OPERATE)
        require_base_name(base.name)
        if len(base.path) > _PATH_LENGTH or not is_storable(base.path):
            raise InvalidError(
                f"The base's path can't be kept: use at most {_PATH_LENGTH} characters of UTF-8, and no NUL.",
                code="invalid_base_path",
            )
        asked = {"fingerprint": base.fingerprint, "path": base.path, "known": _digest_of(base)}
        what = Change(caller, "base.add", None, base.name, asked)
        change(self._database, what, partial(_add, base), str)  # a base is too large to be remembered
        return base

    def list(self, caller: Caller) -> builtins.list[Base]:
        """Every base that the caller may know of, the newest first: not the models of other tenants."""
        allow(caller, Action.MANAGE)
        with self._database.read() as connection:
            plain = [_as_base(row) for row in connection.execute(_select_plain())]
            models = _as_models(connection, _known_models(connection, caller))
        return sorted([*plain, *models], key=lambda base: base.created_at, reverse=True)

    def find(self, caller: Caller, reference: str) -> Base:
        """The base with this fingerprint, name or (for the platform) path, or the model `tenant/name@version`.

        What is a version's full name means that version and nothing else.

        Raises:
            NotFoundError: `base_not_found`, naming those that the caller may know of.
        """
        allow(caller, Action.MANAGE)
        with self._database.read() as connection:
            found = _find(connection, caller, reference) if is_storable(reference) else None
            if found is None:
                names = [*connection.execute(_names()).scalars(), *map(_label_of, _known_models(connection, caller))]
                message = f"The registry has no base {quoted(reference)}. {what_there_is(names)}"
                raise NotFoundError(message, code="base_not_found")
        return found


def what_there_is(names: Iterable[str]) -> str:
    """Names the bases to choose from, and says how there come to be more."""
    return f"It has: {', '.join(sorted(set(names))) or 'none'}. Enter one with `lorikeet base SOURCE`."


def add_model(connection: Connection, model: Base) -> None:
    """Enter what a `merged` or `full` version is, unless a base with its fingerprint is there."""
    row = insert_into(connection, BASES).values(fingerprint=model.fingerprint, is_model=True, **columns_of(model))
    connection.execute(row.on_conflict_do_nothing(index_elements=[BASES.c.fingerprint]))


def require_no_adapters_on(connection: Connection, tenant_id: int, model: Row[Any]) -> None:
    """Raise ConflictError `base_in_use` if adapters of the tenant can be served on the version in `model` alone."""
    if model.model_fingerprint is None:
        return
    of_tenant = (ADAPTERS.c.tenant_id == tenant_id) & VERSIONS.c.state.in_(sorted(SERVABLE))
    servable = select(func.count(VERSIONS.c.id)).join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id).where(of_tenant)
    is_same = (VERSIONS.c.model_fingerprint == model.model_fingerprint) & (VERSIONS.c.id != model.id)
    is_on_it = (VERSIONS.c.base_fingerprint == model.model_fingerprint) & VERSIONS.c.model_fingerprint.is_(None)
    is_entered = exists().where(BASES.c.fingerprint == model.model_fingerprint, ~BASES.c.is_model)
    count = connection.execute(servable.where(is_on_it, ~is_entered)).scalar()
    if count and not connection.execute(servable.where(is_same)).scalar():
        raise ConflictError(
            f"Version {model.number} is the base of {count} version{'s' * (count > 1)} that can be served: retire "
            f"{'those' if count > 1 else 'that'} first.",
            code="base_in_use",
        )


def require_no_base_called(connection: Connection, tenant: str, adapter: str) -> None:
    """Raise ConflictError `name_taken_by_base` if a request for the adapter would be one for a base."""
    if any(could_mean(name, tenant, adapter) for name in connection.execute(_names()).scalars()):
        raise ConflictError(
            f"A base model is called {quoted(adapter)}, and a request by that name means the base: choose another.",
            code="name_taken_by_base",
        )


def claim_adapter_name(connection: Connection, tenant: str, adapter: str) -> None:
    """The same for who is about to make the adapter: until its transaction ends, no base begins to be called so."""
    _lock_names(connection, "pg_advisory_xact_lock_shared")
    require_no_base_called(connection, tenant, adapter)


def claim_base_name(connection: Connection, name: str) -> None:
    """Raise ConflictError `name_taken_by_adapter` if a request for a base called `name` would be one for an adapter.

    Until the transaction ends, no adapter begins to exist.
    """
    _lock_names(connection, "pg_advisory_xact_lock")
    called = select(TENANTS.c.name.label("tenant"), ADAPTERS.c.name).join(TENANTS, TENANTS.c.id == ADAPTERS.c.tenant_id)
    if any(could_mean(name, row.tenant, row.name) for row in connection.execute(called)):
        raise ConflictError(
            f"An adapter is called {quoted(name)}, and a request by that name means it: give the base another name.",
            code="name_taken_by_adapter",
        )


def _lock_names(connection: Connection, function: str) -> None:
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time anyway
        connection.execute(text(f"SELECT {function}(:key)"), {"key": _NAMES_LOCK})


def _add(base: Base, connection: Connection) -> Done[str]:
    claim_base_name(connection, base.name)
    columns = columns_of(base) | {"is_model": False}
    before = connection.execute(_select_plain().where(BASES.c.fingerprint == base.fingerprint)).first()
    is_changed = before is None or _digest_of(_as_base(before)) != _digest_of(base)
    renewed = connection.execute(update(BASES).where(BASES.c.fingerprint == base.fingerprint).values(columns))
    if not renewed.rowcount:
        connection.execute(insert(BASES).values(fingerprint=base.fingerprint, **columns))
    return Done(base.fingerprint, is_changed=is_changed)


def _digest_of(base: Base) -> str:
    """Over what is known of it; when that was found out is no part of it."""
    columns = {name: value for name, value in columns_of(base).items() if name != "created_at"}
    return f"sha256:{hashlib.sha256(json.dumps(columns, sort_keys=True).encode()).hexdigest()}"


def _find(connection: Connection, caller: Caller, reference: str) -> Base | None:
    if (version := version_named(reference)) is not None:
        is_it = (TENANTS.c.name == version.tenant) & (ADAPTERS.c.name == version.adapter)
        models = _known_models(connection, caller, is_it & (VERSIONS.c.number == version.selector))
        return next(iter(_as_models(connection, models)), None)

    if (row := connection.execute(_select_plain().where(BASES.c.fingerprint == reference)).first()) is not None:
        return _as_base(row)
    models = _known_models(connection, caller, VERSIONS.c.model_fingerprint == reference)
    if models:
        first = min(models, key=lambda row: (row.tenant != caller.tenant, row.id))  # its own, before what was granted
        return _as_models(connection, [first])[0]
    is_called = [BASES.c.name == reference]
    if caller.tenant is None:  # where this machine keeps what is its operator's
        is_called.append(BASES.c.path.in_({reference, str(Path(reference).absolute())} - {""}))
    for is_so in is_called:
        if (row := connection.execute(_select_plain().where(is_so).limit(1)).first()) is not None:
            return _as_base(row)
    return None


def _names() -> Select[Any]:
    # A model's name is its version's: it means the base wherever one is asked for, and takes no other name away.
    return select(BASES.c.name).where(~BASES.c.is_model)


def _select_plain() -> Select[Any]:
    """The bases that were entered, the newest first."""
    return select(BASES).where(~BASES.c.is_model).order_by(BASES.c.created_at.desc(), BASES.c.id.desc())


def _known_models(
    connection: Connection, caller: Caller, is_it: ColumnElement[bool] | None = None
) -> builtins.list[Row[Any]]:
    """The versions that can be served and are bases for the caller, the newest first."""
    is_granted = exists().where(GRANTS.c.adapter_id == ADAPTERS.c.id, GRANTS.c.grantee == (caller.tenant or ""))
    of_versions = (VERSIONS.c.id, VERSIONS.c.number, VERSIONS.c.model_fingerprint, VERSIONS.c.base_fingerprint)
    of_adapters = (TENANTS.c.name.label("tenant"), ADAPTERS.c.name.label("adapter"), is_granted.label("is_granted"))
    query = (
        select(*of_versions, VERSIONS.c.created_at, VERSIONS.c.size_bytes, *of_adapters)
        .join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id)
        .join(TENANTS, TENANTS.c.id == ADAPTERS.c.tenant_id)
        .where(VERSIONS.c.model_fingerprint.is_not(None), VERSIONS.c.state.in_(sorted(SERVABLE)))
        .where(true() if is_it is None else is_it)
        .order_by(VERSIONS.c.created_at.desc(), VERSIONS.c.id.desc())
    )
    rows = connection.execute(query)
    return [row for row in rows if may_build_on(caller, row.tenant, is_granted=row.is_granted)]


def _label_of(model: Row[Any]) -> str:
    return f"{model.tenant}/{model.adapter}@{model.number}"


def _as_models(connection: Connection, models: Sequence[Row[Any]]) -> builtins.list[Base]:
    """What `_known_models` found, each under its own name."""
    query = select(BASES).where(BASES.c.fingerprint.in_({model.model_fingerprint for model in models}))
    known = {row.fingerprint: _as_base(row) for row in connection.execute(query)}
    return [_as_model(known[model.model_fingerprint], model) for model in models]


def _as_model(base: Base, model: Row[Any]) -> Base:
    """What a version in fewer bits was published for is what it was quantised from."""
    return replace(
        base,
        name=_label_of(model),
        path="",
        version=_label_of(model),
        quantised_from=model.base_fingerprint if base.is_quantised else None,
        size_bytes=model.size_bytes,
        created_at=model.created_at,
    )


def columns_of(base: Base) -> dict[str, Any]:
    """The row of a base, but for its fingerprint and whether it was entered."""
    return {
        "name": base.name,
        "path": base.path,
        "modules": {name: [module.in_features, module.out_features] for name, module in base.modules.items()},
        "tensors": {name: list(shape) for name, shape in base.tensors.items()},
        "config": with_quantised_from(base.config, base.quantised_from),
        "chat_template_digest": base.chat_template_digest,
        "parameter_count": base.parameter_count,
        "size_bytes": base.size_bytes,
        "created_at": base.created_at,
    }


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
        tensors={name: tuple(shape) for name, shape in row.tensors.items()},
        config=row.config,
        quantised_from=quantised_from(row.config),
    )
