"""Tenants, and how much each may have and use."""

from http import HTTPStatus

from fastapi import APIRouter

from adapters import Scope, TenantLimits
from server.admin.bodies import NewTenant, TenantPatch
from server.admin.paging import AfterDep, page_of
from server.admin.wire import Page, TenantOut
from server.callers import require
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
async def patch_tenant(tenant: str, patch: TenantPatch, caller: AdminDep, parts: PartsDep) -> TenantOut:
    """What it names, anew: limits, which are the platform's to say, and the tenant's default adapter.

    Null lifts a limit, and what the tenant has already stays. Without a default adapter, the base answers.
    """
    tenants, write = parts.registry.tenants, parts.threads.write
    if "limits" in patch.model_fields_set:
        require(caller, Scope.PLATFORM)
    if "default_adapter" in patch.model_fields_set:  # first, since it can be refused
        changed = await write(tenants.set_default, caller, tenant, patch.default_adapter)
    if "limits" in patch.model_fields_set:
        limits, named = TenantLimits(**patch.limits.model_dump()), frozenset(patch.limits.model_fields_set)
        changed = await write(tenants.set_limits, caller, tenant, limits, only=named)
    return TenantOut.of(changed)
