"""All that a registry keeps, as JSON: what two registries with the same past have in common.

Read past the registry's own methods, in a few queries: the campaign does it thousands of times.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, select

from adapters import Registry
from adapters.schema import ADAPTERS, ALIASES, API_KEYS, AUDIT, BLOBS, GRANTS, PROMOTIONS, TENANTS, VERSIONS
from tests.crash.calls import told

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class State:
    """Equal if nobody can tell the two apart but by moments, ids and secrets."""

    tenants: Any
    adapters: Any
    versions: Any
    promotions: Any
    aliases: Any
    grants: Any
    keys: Any
    audit: tuple[Any, ...]
    """The oldest row first."""
    blobs: frozenset[str]
    """The digests of which the database says that they are there."""

    def differs(self, other: "State", *, beside: frozenset[str] = frozenset()) -> list[str]:
        """The parts in which another is not the same."""
        names = [name for name in State.__dataclass_fields__ if name not in beside]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def read_state(registry: Registry) -> State:
    """As it is at one moment. Ids are told as names: a call that failed may have used up an id."""
    with registry._database.read() as connection:
        tenants, adapters, versions, promotions, keys = (
            _rows(connection, table) for table in (TENANTS, ADAPTERS, VERSIONS, PROMOTIONS, API_KEYS)
        )
        names: dict[str, dict[Any, Any]] = {"tenant_id": {row["id"]: row["name"] for row in tenants}, "id": {}}
        names["adapter_id"] = {row["id"]: (names["tenant_id"][row["tenant_id"]], row["name"]) for row in adapters}
        names["version_id"] = {row["id"]: (names["adapter_id"][row["adapter_id"]], row["number"]) for row in versions}
        names["promotion_id"] = {row["id"]: place for place, row in enumerate(promotions)}
        names["replaced_id"] = names["promotion_id"]
        names["subject"] = {row["id"]: row["name"] for row in keys}
        return State(
            tenants=_named(tenants, names),
            adapters=_named(adapters, names),
            versions=_named(versions, names),
            promotions=_named(promotions, names),
            aliases=_named(_rows(connection, ALIASES), names),
            grants=_named(_rows(connection, GRANTS), names),
            keys=sorted((row["tenant_id"], row["name"], row["revoked_at"] is not None) for row in keys),
            audit=tuple(_named(_rows(connection, AUDIT), names)),
            blobs=frozenset(row["digest"] for row in _rows(connection, BLOBS)),
        )


def _rows(connection: Connection, table: Table) -> Rows:
    first = next(iter(table.primary_key.columns))
    return [dict(row._mapping) for row in connection.execute(select(table).order_by(first))]


def _named(rows: Rows, names: dict[str, dict[Any, Any]]) -> Any:
    """The rows, with what other rows' ids stand for."""
    return told([{column: _name(names.get(column, {}), value) for column, value in row.items()} for row in rows])


def _name(named: dict[Any, Any], value: Any) -> Any:
    return named.get(value.strip("'\"") if isinstance(value, str) else value, value) if named else value
