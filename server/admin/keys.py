"""API keys: a tenant's, and the platform's own."""

from http import HTTPStatus

from fastapi import APIRouter

from adapters import Caller, Scope
from server.admin.bodies import NO_BODY, NewKey, NewPlatformKey, PageAfter
from server.admin.paging import AfterDep, page_of
from server.admin.wire import IssuedKeyOut, KeyOut, Page
from server.parts import AdminDep, Parts, PartsDep, PlatformDep

router = APIRouter(prefix="/admin/v1")


@router.get("/tenants/{tenant}/keys")
async def list_keys(tenant: str, page: AfterDep, caller: AdminDep, parts: PartsDep) -> Page[KeyOut]:
    """A tenant's keys, without their secrets, the oldest first."""
    return await _list(parts, caller, tenant, page)


@router.post("/tenants/{tenant}/keys", status_code=HTTPStatus.CREATED)
async def issue_key(tenant: str, new: NewKey, caller: AdminDep, parts: PartsDep) -> IssuedKeyOut:
    """A new key. Its secret is in this answer and nowhere else: null, if the call is repeated."""
    return await _issue(parts, caller, tenant, new, new.scopes)


@router.delete("/tenants/{tenant}/keys/{key_id}", dependencies=[NO_BODY])
async def revoke_key(tenant: str, key_id: str, caller: AdminDep, parts: PartsDep) -> KeyOut:
    """From now on the key opens nothing."""
    return KeyOut.of(await parts.threads.write(parts.registry.keys.revoke, caller, tenant, key_id))


@router.get("/keys")
async def list_platform_keys(page: AfterDep, caller: PlatformDep, parts: PartsDep) -> Page[KeyOut]:
    """The platform's own keys."""
    return await _list(parts, caller, None, page)


@router.post("/keys", status_code=HTTPStatus.CREATED)
async def issue_platform_key(new: NewPlatformKey, caller: PlatformDep, parts: PartsDep) -> IssuedKeyOut:
    """A new key for the platform."""
    return await _issue(parts, caller, None, new, frozenset({Scope.PLATFORM}))


@router.delete("/keys/{key_id}", dependencies=[NO_BODY])
async def revoke_platform_key(key_id: str, caller: PlatformDep, parts: PartsDep) -> KeyOut:
    """From now on the key opens nothing. Its own holder may do this, too."""
    return KeyOut.of(await parts.threads.write(parts.registry.keys.revoke, caller, None, key_id))


async def _list(parts: Parts, caller: Caller, tenant: str | None, page: PageAfter) -> Page[KeyOut]:
    keys = await parts.threads.read(parts.registry.keys.list, caller, tenant, after=page.after, limit=page.limit)
    return page_of(keys, page.limit, KeyOut.of, lambda key: key.id)


async def _issue(
    parts: Parts, caller: Caller, tenant: str | None, new: NewPlatformKey, scopes: frozenset[Scope]
) -> IssuedKeyOut:
    issued = await parts.threads.write(
        parts.registry.keys.issue, caller, tenant, name=new.name, scopes=scopes, expires_at=new.expires_at
    )
    return IssuedKeyOut.issued(issued)
