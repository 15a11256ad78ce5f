"""Tenants and their API keys."""

from http import HTTPStatus

from fastapi import APIRouter

from server.admin.wire import IssuedKeyOut, KeyOut, NewKey, NewTenant, Page, TenantOut
from server.parts import AdminDep, PartsDep, PlatformDep

router = APIRouter(prefix="/admin/v1/tenants")


@router.get("")
async def list_tenants(caller: AdminDep, parts: PartsDep) -> Page[TenantOut]:
    """All tenants for the platform, its own for a tenant's admin."""
    tenants = await parts.threads.read(parts.registry.tenants.list, caller)
    return Page(data=[TenantOut.of(tenant) for tenant in tenants])


@router.post("", status_code=HTTPStatus.CREATED)
async def create_tenant(new: NewTenant, caller: PlatformDep, parts: PartsDep) -> TenantOut:
    """A new tenant."""
    return TenantOut.of(await parts.threads.write(parts.registry.tenants.create, caller, new.name))


@router.get("/{tenant}")
async def get_tenant(tenant: str, caller: AdminDep, parts: PartsDep) -> TenantOut:
    """One tenant."""
    return TenantOut.of(await parts.threads.read(parts.registry.tenants.get, caller, tenant))


@router.get("/{tenant}/keys")
async def list_keys(tenant: str, caller: AdminDep, parts: PartsDep) -> Page[KeyOut]:
    """A tenant's keys, without their secrets."""
    keys = await parts.threads.read(parts.registry.keys.list, caller, tenant)
    return Page(data=[KeyOut.of(key) for key in keys])


@router.post("/{tenant}/keys", status_code=HTTPStatus.CREATED)
async def issue_key(tenant: str, new: NewKey, caller: AdminDep, parts: PartsDep) -> IssuedKeyOut:
    """A new key. Its secret is in this answer and nowhere else."""
    issued = await parts.threads.write(
        parts.registry.keys.issue, caller, tenant, name=new.name, scopes=new.scopes, expires_at=new.expires_at
    )
    return IssuedKeyOut.issued(issued)


@router.delete("/{tenant}/keys/{key_id}")
async def revoke_key(tenant: str, key_id: str, caller: AdminDep, parts: PartsDep) -> KeyOut:
    """From now on the key opens nothing."""
    return KeyOut.of(await parts.threads.write(parts.registry.keys.revoke, caller, tenant, key_id))
