"""Adapters, each with its aliases."""

from fastapi import APIRouter

from server.admin.paging import AfterDep, page_of
from server.admin.wire import AdapterOut, Page
from server.parts import AdminDep, PartsDep

router = APIRouter(prefix="/admin/v1/tenants/{tenant}/adapters")


@router.get("")
async def list_adapters(tenant: str, page: AfterDep, caller: AdminDep, parts: PartsDep) -> Page[AdapterOut]:
    """A tenant's adapters, by name."""
    adapters = await parts.threads.read(
        parts.registry.adapters.list, caller, tenant, after=page.after, limit=page.limit
    )
    return page_of(adapters, page.limit, AdapterOut.of, lambda adapter: adapter.name)


@router.get("/{adapter}")
async def get_adapter(tenant: str, adapter: str, caller: AdminDep, parts: PartsDep) -> AdapterOut:
    """One adapter."""
    return AdapterOut.of(await parts.threads.read(parts.registry.adapters.get, caller, tenant, adapter))
