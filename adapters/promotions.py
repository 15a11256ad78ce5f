"""What aliases stand on: promotions, each on the one that it replaced. Nothing takes one away.

Every function works in the caller's transaction.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, insert, select

from adapters.lookups import arms_of, as_bound
from adapters.schema import PROMOTIONS, VERSIONS
from adapters.values import SERVABLE, Arm, Move


def add_promotion(
    connection: Connection, adapter_id: int, alias: str, arms: Sequence[Arm], *, on: int | None, by: str
) -> int:
    """Put one on the promotion `on`, or begin a stack; its id. The versions must be there."""
    heaviest = max(arms, key=lambda arm: arm.weight)
    version = select(VERSIONS.c.id).where(VERSIONS.c.adapter_id == adapter_id, VERSIONS.c.number == heaviest.version)
    columns = {
        "adapter_id": adapter_id,
        "alias": alias,
        "version_id": version.scalar_subquery(),
        "split": [[arm.version, arm.weight] for arm in arms] if len(arms) > 1 else None,
        "replaced_id": on,
        "created_at": datetime.now(UTC),
        "created_by": by,
    }
    return int(connection.execute(insert(PROMOTIONS).values(columns).returning(PROMOTIONS.c.id)).scalar_one())


def first_revision(connection: Connection, adapter_id: int, alias: str) -> int:
    """That of a new alias, before its first promotion is added.

    Each of the n promotions that the name has had was one move, and was rolled back at most once: no revision was above
    2n. So what somebody remembers of an alias that was removed is never this one's.
    """
    count = select(func.count()).select_from(PROMOTIONS).where(_of_alias(adapter_id, alias))
    return 2 * int(connection.execute(count).scalar_one()) + 1


def servable_below(connection: Connection, alias: Row[Any]) -> int | None:
    """The nearest promotion down the stack that means something else and can be served whole; `alias`: as selected."""
    rows = connection.execute(_select().where(_of_alias(alias.adapter_id, alias.name)))
    promotions = {row.id: row for row in rows}
    unservable = select(VERSIONS.c.number).where(
        VERSIONS.c.adapter_id == alias.adapter_id, VERSIONS.c.state.not_in(sorted(SERVABLE))
    )
    gone = set(connection.execute(unservable).scalars())
    below = promotions.get(alias.replaced_id)
    while below is not None:
        arms = arms_of(below)
        if arms != arms_of(alias) and gone.isdisjoint(arm.version for arm in arms):
            return int(below.id)
        below = promotions.get(below.replaced_id)
    return None


def read_moves(connection: Connection, adapter_id: int, alias: str, *, before: int | None, limit: int) -> list[Move]:
    """The newest first, numbered from 1, the first of all: at most `limit`, those with numbers below `before`."""
    place = func.row_number().over(order_by=PROMOTIONS.c.id).label("place")
    moves = _select(place).where(_of_alias(adapter_id, alias)).subquery()
    page = select(moves).order_by(moves.c.place.desc()).limit(limit)
    if before is not None:
        page = page.where(moves.c.place < as_bound(before))
    return [Move(row.place, arms_of(row), row.created_at, row.created_by) for row in connection.execute(page)]


def _select(*columns: ColumnElement[Any]) -> Select[Any]:
    """With the `number` that `arms_of` reads."""
    joined = select(PROMOTIONS, VERSIONS.c.number, *columns)
    return joined.join(VERSIONS, VERSIONS.c.id == PROMOTIONS.c.version_id)


def _of_alias(adapter_id: int, alias: str) -> ColumnElement[bool]:
    return (PROMOTIONS.c.adapter_id == adapter_id) & (PROMOTIONS.c.alias == alias)
