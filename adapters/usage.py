"""What was used: requests, tokens and time by day (UTC), tenant, adapter, version and key. None of it is taken away.

Knows neither limits nor who counts: a server adds up what passes, and adds it here every few seconds.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Column, func, literal, select, tuple_

from adapters.access import Action, allow
from adapters.callers import Caller
from adapters.database import Database, insert_into
from adapters.errors import InvalidError
from adapters.lookups import DEFAULT_PAGE, find_tenant, require_page
from adapters.schema import USAGE


class UsageField(StrEnum):
    """What usage is told apart by."""

    DAY = "day"
    TENANT = "tenant"
    ADAPTER = "adapter"
    VERSION = "version"
    KEY = "key_id"


_ALL: Final = tuple(UsageField)
_DIGITS: Final = 10
"""Of 2³¹, where SQL's integers end."""
_COUNTS: Final = (
    "requests",
    "failed_requests",
    "prompt_tokens",
    "completion_tokens",
    "aborted_requests",
    "cached_tokens",
    "answered_requests",
    "first_token_ms",
    "request_ms",
)


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What was used, and by whom. Of the first five, those are None that were summed over."""

    day: date | None = None
    tenant: str | None = None
    """Who asked."""
    adapter: str | None = None
    """`support`; `globex/support`, if it is another's; `base`; empty, if the request named nothing that is served."""
    version: int | None = None
    """0: none, such as the base's."""
    key_id: str | None = None
    requests: int = 0
    failed_requests: int = 0
    """Those among them that were answered with an error."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    aborted_requests: int = 0
    """Those among the requests whose clients hung up before the end: none of them counts as failed."""
    cached_tokens: int = 0
    """Those among the prompts' that the prefix cache had."""
    answered_requests: int = 0
    """Those among the requests that got a first token."""
    first_token_ms: int = 0
    """From their arrival to it, all together."""
    request_ms: int = 0
    """From the requests' arrival to their end, all together."""

    @property
    def mean_first_token_ms(self) -> float | None:
        """Of those requests that got one."""
        return self.first_token_ms / self.answered_requests if self.answered_requests else None

    @property
    def mean_request_ms(self) -> float | None:
        """Of all requests, however they ended."""
        return self.request_ms / self.requests if self.requests else None

    @property
    def cursor(self) -> str:
        """Where the page after this row begins."""
        return ",".join(str(value) for value in map(self.__getattribute__, _ALL) if value is not None)


class UsageLedger:
    """`registry.usage`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, caller: Caller, rows: Sequence[UsageRow]) -> None:
        """Add all the rows' counts to what is there, or none of them. Platform only; each row names all five fields.

        The audit says nothing of it. If the connection breaks while the database commits, nobody knows whether it did:
        that is a StorageError, too.

        Raises:
            ConflictError, StorageError: nothing was added.
        """
        allow(caller, Action.OPERATE)
        if not rows:
            return
        with self._database.write() as connection:
            insert = insert_into(connection, USAGE)
            more = {name: USAGE.c[name] + insert.excluded[name] for name in _COUNTS}
            # In one order: two servers that add at once wait for each other, instead of each for what the other holds.
            ordered = sorted((asdict(row) for row in rows), key=lambda row: [row[field] for field in _ALL])
            upsert = insert.on_conflict_do_update(index_elements=[USAGE.c[field] for field in _ALL], set_=more)
            connection.execute(upsert, ordered)

    def read(
        self,
        caller: Caller,
        *,
        since: date,
        until: date,
        tenant: str | None = None,
        adapter: str | None = None,
        by: Collection[UsageField] = _ALL,
        after: str | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> list[UsageRow]:
        """What was used from the day `since` to the day `until`, both included: a row for each combination of `by`.

        A tenant's admin reads of its own tenant; the platform of one, or of all. At most `limit` rows, in the order of
        their fields, those that come after the one whose `cursor` is `after`.

        Raises:
            NotFoundError: `tenant_not_found`.
            InvalidError: `invalid_limit`, `invalid_cursor`, or `invalid_days`: they end before they begin.
        """
        whose = caller.tenant if tenant is None else tenant
        allow(caller, Action.MANAGE, whose)
        require_page(limit)
        if until < since:
            raise InvalidError("These days end before they begin.", code="invalid_days")
        columns = [USAGE.c[field] for field in _ALL if field in by]
        sums = [func.sum(USAGE.c[name]).label(name) for name in _COUNTS]
        query = select(*columns, *sums).where(USAGE.c.day.between(since, until))
        query = query.group_by(*columns).order_by(*columns).limit(limit)
        if adapter is not None:
            query = query.where(USAGE.c.adapter == _plain(adapter))
        if after is not None:
            query = query.where(tuple_(*columns) > _place(columns, after))
        with self._database.read() as connection:
            if whose is not None:
                find_tenant(connection, whose)
                query = query.where(USAGE.c.tenant == whose)
            found = connection.execute(query).mappings().all()
        # The sum over nothing is a row of nulls; PostgreSQL's sums of bigints are decimals.
        return [
            UsageRow(**{**row, **{name: int(row[name]) for name in _COUNTS}})
            for row in found
            if row["requests"] is not None
        ]

    def tokens(self, caller: Caller, tenant: str, *, since: date, until: date) -> int:
        """Prompt and answer together, in these days, both included. Raises NotFoundError `tenant_not_found`."""
        rows = self.read(caller, tenant=tenant, since=since, until=until, by=())
        return sum(row.prompt_tokens + row.completion_tokens for row in rows)


def _place(columns: Sequence[Column[Any]], cursor: str) -> Any:  # noqa: ANN401  — SQLAlchemy's tuples
    """A row's cursor as what the `columns` are compared with. Raises InvalidError `invalid_cursor`."""
    kinds = {date: date.fromisoformat, int: _number, str: _plain}
    try:
        values = [
            literal(kinds[column.type.python_type](text), column.type)
            for column, text in zip(columns, cursor.split(","), strict=True)
        ]
    except ValueError as error:
        raise InvalidError(
            "A page goes on where the page before ended: take its cursor.", code="invalid_cursor"
        ) from error
    return tuple_(*values)


def _number(text: str) -> int:
    """Raises ValueError: no version has it."""
    if not (text.isascii() and text.isdigit() and len(text) < _DIGITS):
        raise ValueError(text)
    return int(text)


def _plain(text: str) -> str:
    """`text`, or what no row has: PostgreSQL refuses some text (NUL, lone surrogates) with an error of its own."""
    return text if text.isascii() and text.isprintable() else "?"
