"""Tenants, and how much each may have and use."""

from http import HTTPStatus

from fastapi import APIRouter

from adapters import TenantLimits
from server.admin.bodies import NewTenant, TenantPatch
from server.admin.paging import AfterDep, page_of
from server.admin.wire import Page, TenantOut
from server.parts import AdminDep, PartsDep, PlatformDep

router = APIRouter(prefix="/admin/v1/tenants")


@router.get("")
async def list_tenants(page: AfterDep, caller: AdminDep, parts: PartsDep) -> Page[TenantOut]:
    """All tenants by name for the platform, its own for a tenant's admin."""
    tenants = await parts.threads.read(parts.registry.tenants.list, caller, after=page.after, limit=page.limit)
    return page_of(tenants, page.limit, TenantOut.of, lambda tenant: tenant.name)


@router.post("", status_code=HTTPStatus.CREATED)
async def create_tenant(new: NewTenant, caller: PlatformDep, parts: PartsDep) -> TenantOut:
    """A new tenant."""
    return TenantOut.of(await parts.threads.write(parts.registry.tenants.create, caller, new.name))


@router.get("/{tenant}")
async def get_tenant(tenant: str, caller: AdminDep, parts: PartsDep) -> TenantOut:
    """One tenant."""
    return TenantOut.of(await parts.threads.read(parts.registry.tenants.get, caller, tenant))


@router.patch("/{tenant}")
async def patch_tenant(tenant: str, patch: TenantPatch, caller: PlatformDep, parts: PartsDep) -> TenantOut:
    """The limits that it names, anew; null lifts one. What the tenant has already stays."""
    limits = TenantLimits(**patch.limits.model_dump())
    named = frozenset(patch.limits.model_fields_set)
    return TenantOut.of(
        await parts.threads.write(parts.registry.tenants.set_limits, caller, tenant, limits, only=named)
    )
