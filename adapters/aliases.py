"""Movable names for versions, and the way back.

An alias stands on a promotion, and each promotion on the one that it replaced: a stack. To promote pushes, to roll back
pops. Invariant: an alias points at a version that was servable when it was moved there.
"""

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, insert, select, update

from adapters.access import Action, allow
from adapters.database import Database
from adapters.errors import ConflictError
from adapters.lookups import as_alias, find_adapter, find_version, select_aliases
from adapters.names import LIVE, quoted, require_alias_name
from adapters.schema import ALIASES, PROMOTIONS, VERSIONS
from adapters.values import Alias, Caller, VersionState

SERVABLE: Final = frozenset(state for state in VersionState if state.is_servable)
"""The states in which a version may be resolved, for queries and rows."""


class Aliases:
    """`registry.aliases`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def promote(
        self,
        caller: Caller,
        tenant: str,
        adapter: str,
        number: int,
        *,
        alias: str = LIVE,
        expected_revision: int | None = None,
    ) -> Alias:
        """Point an alias at a version, making the alias if need be. One that points there already is left as it is.

        `expected_revision`: move it only if its revision is still this (0: only if there is no such alias yet).

        Raises:
            NotFoundError: `adapter_not_found` or `version_not_found`.
            ConflictError: `version_not_ready`, if it is rejected or retired; `version_conflict`, if it was moved.
        """
        allow(caller, Action.MANAGE, tenant)
        require_alias_name(alias)
        with self._database.write() as connection:
            adapter_id = find_adapter(connection, tenant, adapter, for_update=True)
            version = find_version(connection, adapter_id, number)
            current = connection.execute(_select(adapter_id, alias)).one_or_none()
            _require_revision(current, expected_revision)
            if version.state not in SERVABLE:
                raise ConflictError(
                    f"Version {number} is {version.state}: an alias points at a version that can be served.",
                    code="version_not_ready",
                )
            if current is not None and current.number == number:
                return as_alias(current)
            promotion_id = connection.execute(
                insert(PROMOTIONS)
                .values(
                    adapter_id=adapter_id,
                    alias=alias,
                    version_id=version.id,
                    replaced_id=current.promotion_id if current else None,
                    created_at=datetime.now(UTC),
                    created_by=caller.name,
                )
                .returning(PROMOTIONS.c.id)
            ).scalar_one()
            return _move(connection, caller, current, adapter_id, alias, promotion_id)

    def rollback(
        self,
        caller: Caller,
        tenant: str,
        adapter: str,
        *,
        alias: str = LIVE,
        expected_revision: int | None = None,
    ) -> Alias:
        """Point an alias at what it pointed at before its last promotion; again, and it goes one further back.

        Versions that were retired or rejected since are passed over.

        Raises:
            NotFoundError: `adapter_not_found`.
            ConflictError: `nothing_to_roll_back`; `version_conflict`, if it was moved.
        """
        allow(caller, Action.MANAGE, tenant)
        require_alias_name(alias)
        with self._database.write() as connection:
            adapter_id = find_adapter(connection, tenant, adapter, for_update=True)
            current = connection.execute(_select(adapter_id, alias)).one_or_none()
            _require_revision(current, expected_revision)
            below = _servable_below(connection, current) if current else None
            if below is None:
                raise ConflictError(
                    f"The alias {quoted(alias)} has no earlier version to go back to.", code="nothing_to_roll_back"
                )
            return _move(connection, caller, current, adapter_id, alias, below)


def _select(adapter_id: int, alias: str) -> Select[Any]:
    return select_aliases().where(ALIASES.c.adapter_id == adapter_id, ALIASES.c.name == alias)


def _require_revision(current: Row[Any] | None, expected: int | None) -> None:
    actual = current.revision if current else 0
    if expected is not None and expected != actual:
        raise ConflictError(
            f"The alias is at revision {actual}, not {expected}: look at it again before moving it.",
            code="version_conflict",
        )


def _servable_below(connection: Connection, current: Row[Any]) -> int | None:
    """The nearest promotion further down the stack whose version is another one and can still be served."""
    promotion_id = current.replaced_id
    while promotion_id is not None:
        below = connection.execute(
            select(PROMOTIONS.c.replaced_id, PROMOTIONS.c.version_id, VERSIONS.c.state)
            .join(VERSIONS, VERSIONS.c.id == PROMOTIONS.c.version_id)
            .where(PROMOTIONS.c.id == promotion_id)
        ).one()
        if below.state in SERVABLE and below.version_id != current.version_id:
            break
        promotion_id = below.replaced_id
    return None if promotion_id is None else int(promotion_id)


def _move(
    connection: Connection, caller: Caller, current: Row[Any] | None, adapter_id: int, alias: str, promotion_id: int
) -> Alias:
    """Let the alias stand on `promotion_id`."""
    columns = {"promotion_id": promotion_id, "moved_at": datetime.now(UTC), "moved_by": caller.name}
    if current is None:
        connection.execute(insert(ALIASES).values(adapter_id=adapter_id, name=alias, revision=1, **columns))
    else:
        connection.execute(
            update(ALIASES).where(ALIASES.c.id == current.id).values(revision=current.revision + 1, **columns)
        )
    return as_alias(connection.execute(_select(adapter_id, alias)).one())
