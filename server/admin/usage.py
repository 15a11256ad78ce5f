"""What was used."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query

from server.admin.bodies import UsageQuery
from server.admin.paging import page_of
from server.admin.wire import Page, UsageOut
from server.parts import AdminDep, PartsDep

router = APIRouter(prefix="/admin/v1/usage")


@router.get("")
async def read_usage(asked: Annotated[UsageQuery, Query()], caller: AdminDep, parts: PartsDep) -> Page[UsageOut]:
    """A row for each day (UTC), tenant, adapter, version and key, or for each combination of the fields in `by`.

    From the first of this month until today, if nothing else is asked for; what was used in the last seconds is not
    in it yet. A tenant's admin sees its own; the platform all, if it names no tenant.
    """
    today = datetime.now(UTC).date()
    rows = await parts.threads.read(
        parts.registry.usage.read,
        caller,
        tenant=asked.tenant,
        since=asked.since or (asked.until or today).replace(day=1),
        until=asked.until or today,
        adapter=asked.adapter,
        by=asked.by,
        after=asked.after,
        limit=asked.limit,
    )
    return page_of(rows, asked.limit, UsageOut.of, lambda row: row.cursor)
