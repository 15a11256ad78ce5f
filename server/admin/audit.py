"""Who did what."""

from typing import Annotated

from fastapi import APIRouter, Query

from server.admin.bodies import AuditQuery
from server.admin.paging import page_of
from server.admin.wire import AuditOut, Page
from server.parts import AdminDep, PartsDep

router = APIRouter(prefix="/admin/v1/audit")


@router.get("")
async def list_audit(asked: Annotated[AuditQuery, Query()], caller: AdminDep, parts: PartsDep) -> Page[AuditOut]:
    """The newest first: what was done to a tenant's things; for the platform, to all if it names no tenant."""
    rows = await parts.threads.read(
        parts.registry.audit, caller, tenant=asked.tenant, before=asked.before, limit=asked.limit
    )
    return page_of(rows, asked.limit, AuditOut.of, lambda row: row.id)
