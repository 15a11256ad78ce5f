"""Whom an adapter is granted to: they may ask it as `owner/adapter`."""

from fastapi import APIRouter

from server.admin.bodies import NO_BODY
from server.admin.paging import AfterDep, page_of
from server.admin.wire import GrantOut, Page
from server.parts import AdminDep, PartsDep

router = APIRouter(prefix="/admin/v1/tenants/{tenant}/adapters/{adapter}/grants")


@router.get("")
async def list_grants(tenant: str, adapter: str, page: AfterDep, caller: AdminDep, parts: PartsDep) -> Page[GrantOut]:
    """Whom an adapter is granted to, by name."""
    grants = await parts.threads.read(
        parts.registry.grants.list, caller, tenant, adapter, after=page.after, limit=page.limit
    )
    return page_of(grants, page.limit, GrantOut.of, lambda grant: grant.grantee)


@router.put("/{grantee}", dependencies=[NO_BODY])
async def give(tenant: str, adapter: str, grantee: str, caller: AdminDep, parts: PartsDep) -> GrantOut:
    """Let another tenant ask it. Whether there is such a tenant is not told."""
    return GrantOut.of(await parts.threads.write(parts.registry.grants.give, caller, tenant, adapter, grantee))


@router.delete("/{grantee}", dependencies=[NO_BODY])
async def take(tenant: str, adapter: str, grantee: str, caller: AdminDep, parts: PartsDep) -> GrantOut:
    """No more, from the other's next request on."""
    return GrantOut.of(await parts.threads.write(parts.registry.grants.take, caller, tenant, adapter, grantee))
