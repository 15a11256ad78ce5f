"""Lists in pages: `{"data": […], "next": cursor}`. The next page begins after the cursor; null: there is none.

A cursor is a name or a number of the page's last row, so that a list that changes meanwhile repeats and skips nothing.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Query

from server.admin.bodies import PageAfter, PageBefore
from server.admin.wire import Page
from server.errors import BadRequestError

MAX_PAGE = 1000

Row = TypeVar("Row")
Item = TypeVar("Item")

AfterDep = Annotated[PageAfter, Query()]
BeforeDep = Annotated[PageBefore, Query()]


def page_of(rows: Sequence[Row], limit: int, out: Callable[[Row], Item], cursor: Callable[[Row], object]) -> Page[Item]:
    """The page of the `rows` that the registry gave when asked for `limit`."""
    return Page(data=[out(row) for row in rows], next=str(cursor(rows[-1])) if len(rows) == limit else None)


def cut(rows: Sequence[Row], limit: int, cursor: Callable[[Row], object], after: object | None) -> Sequence[Row]:
    """Those of all `rows` that the page is made of, where the registry gives the whole list.

    Raises:
        BadRequestError: `invalid_limit`; `invalid_cursor`, which no row has.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise BadRequestError(f"A page has 1 to {MAX_PAGE} rows.", code="invalid_limit", param="limit")
    if after is None:
        return rows[:limit]
    begin = next((place for place, row in enumerate(rows, start=1) if str(cursor(row)) == str(after)), None)
    if begin is None:
        raise BadRequestError("A page goes on where the page before ended: take its 'next'.", code="invalid_cursor")
    return rows[begin : begin + limit]
