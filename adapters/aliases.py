"""Movable names for versions, and the way back.

An alias stands on a promotion, and each promotion on the one that it replaced: a stack. To promote pushes, to roll back
pops. A promotion names one version, or several with the share of the traffic that each gets. Invariants: an alias
points at versions that were servable when it was moved there, and no revision of a name ever comes twice.
"""

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, delete, insert, update

from adapters.access import Action, allow
from adapters.callers import Caller
from adapters.changes import Change, Done, change
from adapters.database import Database
from adapters.errors import ConflictError, InvalidError, NotFoundError
from adapters.lookups import (
    DEFAULT_PAGE,
    arms_of,
    as_alias,
    find_adapter,
    find_version,
    require_page,
    select_aliases,
)
from adapters.names import LIVE, quoted, require_alias_name
from adapters.promotions import add_promotion, first_revision, read_moves, servable_below
from adapters.schema import ALIASES
from adapters.splits import require_arms
from adapters.values import SERVABLE, Alias, Arm, Move, Shadow

MAX_PERCENT: Final = 100


@dataclass(frozen=True, slots=True)
class _Named:
    """Which alias is to be moved, by whom, and from where."""

    caller: Caller
    tenant: str
    adapter: str
    alias: str
    expected_revision: int | None
    must_exist: bool = False

    def change(self, action: str, **asked: Any) -> Change:  # noqa: ANN401  — JSON
        """What is about to be done to it."""
        subject, revision = f"{self.adapter}@{self.alias}", {"expected_revision": self.expected_revision}
        return Change(self.caller, action, self.tenant, subject, asked | revision)


class Aliases:
    """`registry.aliases`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def promote(
        self,
        caller: Caller,
        tenant: str,
        adapter: str,
        to: int | Sequence[Arm],
        *,
        alias: str = LIVE,
        expected_revision: int | None = None,
        must_exist: bool = False,
    ) -> Alias:
        """Point an alias at a version, or split it between several of one kind and base, making it if need be.

        One that points there already is left as it is. `expected_revision`: move it only if its revision is still this
        (0: only if there is no such alias yet). `must_exist`: move it only if there is one.

        Raises:
            InvalidError: `invalid_alias_name`, `invalid_revision` or `invalid_split`.
            NotFoundError: `adapter_not_found` or `version_not_found`.
            ConflictError: `version_not_ready`, if it is rejected or retired; `split_mixed`; `version_conflict`, if it
                was moved.
        """
        named = _named(caller, tenant, adapter, alias, expected_revision, must_exist=must_exist)
        arms = require_arms(to)
        what = named.change("alias.promote", split=_shares(arms))
        return change(self._database, what, partial(_promote, named, arms), Alias)

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

        What holds a version that was retired or rejected since is passed over.

        Raises:
            InvalidError: `invalid_alias_name` or `invalid_revision`.
            NotFoundError: `adapter_not_found`.
            ConflictError: `nothing_to_roll_back`; `version_conflict`, if it was moved.
        """
        named = _named(caller, tenant, adapter, alias, expected_revision)
        return change(self._database, named.change("alias.rollback"), partial(_roll_back, named), Alias)

    def remove(
        self, caller: Caller, tenant: str, adapter: str, alias: str, *, expected_revision: int | None = None
    ) -> Alias:
        """Take an alias away, as it was: the name means nothing, and its version may be retired.

        Its promotions stay in the history. One that is promoted under the name later begins anew, with nothing to roll
        back to and a revision that the name never had.

        Raises:
            InvalidError: `invalid_alias_name` or `invalid_revision`.
            NotFoundError: `adapter_not_found` or `alias_not_found`.
            ConflictError: `version_conflict`, if it was moved.
        """
        named = _named(caller, tenant, adapter, alias, expected_revision)
        return change(self._database, named.change("alias.remove"), partial(_remove, named), Alias)

    def shadow(self, caller: Caller, tenant: str, adapter: str, to: Shadow | None, *, alias: str = LIVE) -> Alias:
        """Let a version of the same kind and base get a copy of a share of the alias's traffic; None ends that.

        It stays as the alias moves, and goes with it. It is no move: the revision stays, too.

        Raises:
            InvalidError: `invalid_alias_name` or `invalid_shadow`.
            NotFoundError: `adapter_not_found`, `alias_not_found` or `version_not_found`.
            ConflictError: `version_not_ready`, if it is rejected or retired; `shadow_mixed`.
        """
        named = _named(caller, tenant, adapter, alias, None)
        if to is not None and not (type(to.version) is type(to.percent) is int and 1 <= to.percent <= MAX_PERCENT):
            raise InvalidError("A shadow is a version and a percentage from 1 to 100.", code="invalid_shadow")
        stored = {"version": to.version, "percent": to.percent} if to is not None else None
        what = Change(caller, "alias.shadow", tenant, f"{adapter}@{alias}", {"shadow": stored})
        return change(self._database, what, partial(_shadow, named, stored), Alias)

    def history(
        self,
        caller: Caller,
        tenant: str,
        adapter: str,
        *,
        alias: str = LIVE,
        before: int | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> builtins.list[Move]:
        """The promotions of an alias, the newest first, whether or not they were rolled back since.

        At most `limit`, those with numbers below `before`.

        Raises:
            InvalidError: `invalid_alias_name` or `invalid_limit`.
            NotFoundError: `adapter_not_found`.
        """
        allow(caller, Action.MANAGE, tenant)
        require_alias_name(alias)
        require_page(limit)
        with self._database.read() as connection:
            return read_moves(connection, find_adapter(connection, tenant, adapter), alias, before=before, limit=limit)


def _named(
    caller: Caller, tenant: str, adapter: str, alias: str, revision: int | None, *, must_exist: bool = False
) -> _Named:
    allow(caller, Action.MANAGE, tenant)
    require_alias_name(alias)
    if revision is not None and (type(revision) is not int or not 0 <= revision < 2**31):
        raise InvalidError("A revision is a whole number from 0.", code="invalid_revision")
    return _Named(caller, tenant, adapter, alias, revision, must_exist)


def _promote(named: _Named, arms: tuple[Arm, ...], connection: Connection) -> Done[Alias]:
    adapter_id, current = _find(connection, named)
    versions = {arm.version: find_version(connection, adapter_id, arm.version) for arm in arms}
    _require_servable(versions)
    _require_alike(versions)
    if current is not None and arms_of(current) == arms:
        return Done(as_alias(current), is_changed=False)
    revision = current.revision + 1 if current else first_revision(connection, adapter_id, named.alias)
    on, by = current.promotion_id if current else None, named.caller.signature
    promotion_id = add_promotion(connection, adapter_id, named.alias, arms, on=on, by=by)
    return Done(_stand(connection, named, adapter_id, promotion_id, revision))


def _roll_back(named: _Named, connection: Connection) -> Done[Alias]:
    _, current = _find(connection, named)
    below = servable_below(connection, current) if current else None
    if current is None or below is None:
        raise ConflictError(
            f"The alias {quoted(named.alias)} has no earlier version to go back to.", code="nothing_to_roll_back"
        )
    alias = _stand(connection, named, current.adapter_id, below, current.revision + 1)
    return Done(alias, detail={"split": _shares(alias.arms)})


def _remove(named: _Named, connection: Connection) -> Done[Alias]:
    _, current = _find(connection, named)
    if current is None:
        raise _no_such_alias(named)
    connection.execute(delete(ALIASES).where(ALIASES.c.id == current.id))
    alias = as_alias(current)
    return Done(alias, detail={"split": _shares(alias.arms)})


def _shadow(named: _Named, stored: dict[str, int] | None, connection: Connection) -> Done[Alias]:
    adapter_id, current = _find(connection, named)
    if current is None:
        raise _no_such_alias(named)
    if stored is not None:
        number = stored["version"]
        version = find_version(connection, adapter_id, number)
        _require_servable({number: version})
        live = find_version(connection, adapter_id, current.number)
        if (live.manifest["kind"], live.base_fingerprint) != (version.manifest["kind"], version.base_fingerprint):
            raise ConflictError(
                f"A shadow is of the same kind and base as what answers: version {number} is not.", code="shadow_mixed"
            )
    is_changed = current.shadow != stored
    if is_changed:
        connection.execute(update(ALIASES).where(ALIASES.c.id == current.id).values(shadow=stored))
    alias = as_alias(connection.execute(_select(adapter_id, named.alias)).one())
    return Done(alias, is_changed=is_changed)


def _no_such_alias(named: _Named) -> NotFoundError:
    return NotFoundError(f"The adapter has no alias {quoted(named.alias)}.", code="alias_not_found")


def _find(connection: Connection, named: _Named) -> tuple[int, Row[Any] | None]:
    """The adapter's id, its row locked; the alias as it is. Raises ConflictError, if it is not as it was expected."""
    adapter_id = find_adapter(connection, named.tenant, named.adapter, for_update=True)
    current = connection.execute(_select(adapter_id, named.alias)).one_or_none()
    if current is None and named.must_exist:
        raise ConflictError("There is no such alias yet.", code="version_conflict")
    actual, expected = current.revision if current else 0, named.expected_revision
    if expected is not None and expected != actual:
        raise ConflictError(
            f"The alias is at revision {actual}, not {expected}: look at it again before moving it.",
            code="version_conflict",
        )
    return adapter_id, current


def _select(adapter_id: int, alias: str) -> Select[Any]:
    return select_aliases().where(ALIASES.c.adapter_id == adapter_id, ALIASES.c.name == alias)


def _shares(arms: Sequence[Arm]) -> dict[str, int]:
    """As the audit tells them."""
    return {str(arm.version): arm.weight for arm in arms}


def _require_servable(versions: Mapping[int, Row[Any]]) -> None:
    for number, version in versions.items():
        if version.state not in SERVABLE:
            raise ConflictError(
                f"Version {number} is {version.state}: an alias points at a version that can be served.",
                code="version_not_ready",
            )


def _require_alike(versions: Mapping[int, Row[Any]]) -> None:
    """A server runs on one base: beside it, another's adapter has no place, and no model."""
    known = {number: (row.manifest["kind"], row.base_fingerprint) for number, row in versions.items()}
    first, (kind, base) = next(iter(known.items()))
    for number, (other_kind, other_base) in known.items():
        if (other_kind, other_base) != (kind, base):
            raise ConflictError(
                f"A split is between versions of one kind and one base: version {first} is {kind} on {base}, "
                f"version {number} is {other_kind} on {other_base}.",
                code="split_mixed",
            )


def _stand(connection: Connection, named: _Named, adapter_id: int, promotion_id: int, revision: int) -> Alias:
    """Let the alias stand on a promotion, making it if need be."""
    now, by = datetime.now(UTC), named.caller.signature
    columns = {"promotion_id": promotion_id, "revision": revision, "moved_at": now, "moved_by": by}
    is_it = (ALIASES.c.adapter_id == adapter_id) & (ALIASES.c.name == named.alias)
    if not connection.execute(update(ALIASES).where(is_it).values(columns)).rowcount:
        connection.execute(insert(ALIASES).values(adapter_id=adapter_id, name=named.alias, **columns))
    return as_alias(connection.execute(_select(adapter_id, named.alias)).one())
