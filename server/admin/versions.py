"""Adapters, their versions and aliases: upload, look, promote, roll back, retire.

A promote makes the new version resident before the alias moves, so that no request waits for it; the old one goes when
its leases end.
"""

import re
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from adapters import Alias, Caller, Version
from server.admin.uploads import upload_members
from server.admin.wire import AdapterOut, AliasOut, Number, Page, Pointed, VersionOut
from server.engine.protocol import AdapterRejectedError
from server.errors import BadRequestError
from server.leasing import target_of
from server.metrics import Labels
from server.parts import AdminDep, Parts, PartsDep
from server.probe import upload_probe

router = APIRouter(prefix="/admin/v1/tenants/{tenant}/adapters")
ETAG = re.compile(r'(?:W/)?"?(\d{1,9})"?')

LIVE = "live"

IfMatch = Annotated[str | None, Header()]


@router.get("")
async def list_adapters(tenant: str, caller: AdminDep, parts: PartsDep) -> Page[AdapterOut]:
    """A tenant's adapters."""
    adapters = await parts.threads.read(parts.registry.adapters.list, caller, tenant)
    return Page(data=[AdapterOut.of(adapter) for adapter in adapters])


@router.post("/{adapter}/versions", status_code=HTTPStatus.CREATED)
async def upload(
    tenant: str,
    adapter: str,
    request: Request,
    response: Response,
    caller: AdminDep,
    parts: PartsDep,
    *,
    promote: bool = False,
) -> VersionOut:
    """Publish a version: 201, or 200 if these very bytes were there already."""
    await parts.threads.read(parts.registry.tenants.get, caller, tenant)  # before the body is read: may they at all?
    probe = upload_probe(parts.engine, parts.residency, Labels(tenant, adapter, "probe"))
    max_bytes = parts.registry.limits.max_upload_bytes
    with parts.uploads.admitted(tenant), parts.registry.store.stage() as folder:
        async with upload_members(request, folder, max_bytes=max_bytes) as members:
            published = await parts.threads.publish(
                parts.registry.versions.publish,
                *(caller, tenant, adapter, members),
                base=parts.base.fingerprint,
                origin={"method": "upload"},
                probe=probe,
            )
    if promote:
        await _promote(parts, caller, published.version, LIVE, expected_revision=None)
    response.status_code = HTTPStatus.CREATED if published.is_new else HTTPStatus.OK
    return VersionOut.of(published.version)


@router.get("/{adapter}/versions")
async def list_versions(tenant: str, adapter: str, caller: AdminDep, parts: PartsDep) -> Page[VersionOut]:
    """An adapter's versions."""
    versions = await parts.threads.read(parts.registry.versions.list, caller, tenant, adapter)
    return Page(data=[VersionOut.of(version) for version in versions])


@router.get("/{adapter}/versions/{number}")
async def get_version(tenant: str, adapter: str, number: Number, caller: AdminDep, parts: PartsDep) -> VersionOut:
    """One version."""
    return VersionOut.of(await parts.threads.read(parts.registry.versions.get, caller, tenant, adapter, number))


@router.delete("/{adapter}/versions/{number}")
async def retire(tenant: str, adapter: str, number: Number, caller: AdminDep, parts: PartsDep) -> VersionOut:
    """No request resolves to it from now on; those that run with it finish."""
    version = await parts.threads.write(parts.registry.versions.retire, caller, tenant, adapter, number)
    await parts.leases.drop(version)
    return VersionOut.of(version)


@router.put("/{adapter}/aliases/{alias}")
async def point(
    tenant: str,
    adapter: str,
    alias: str,
    pointed: Pointed,
    response: Response,
    caller: AdminDep,
    parts: PartsDep,
    if_match: IfMatch = None,
) -> AliasOut:
    """Point an alias at a version. `If-Match` with the alias's last ETag refuses to overwrite another's move."""
    revision = _revision(if_match)
    version = await parts.threads.read(parts.registry.versions.get, caller, tenant, adapter, pointed.version)
    return _tagged(response, await _promote(parts, caller, version, alias, expected_revision=revision))


@router.post("/{adapter}/rollback")
async def roll_back(
    tenant: str, adapter: str, response: Response, caller: AdminDep, parts: PartsDep, if_match: IfMatch = None
) -> AliasOut:
    """`live` goes back to what it was before the last promote."""
    revision = _revision(if_match)
    back = await parts.threads.write(
        parts.registry.aliases.rollback, caller, tenant, adapter, expected_revision=revision
    )
    return _tagged(response, back)


async def _promote(
    parts: Parts, caller: Caller, version: Version, alias: str, *, expected_revision: int | None
) -> Alias:
    whose = (caller, version.tenant, version.adapter, version.number)
    async with AsyncExitStack() as held:
        if version.state.is_servable:  # of the others the registry says what is wrong
            try:
                await held.enter_async_context(parts.leases.lease(target_of(version)))
            except AdapterRejectedError:
                now = await parts.threads.read(parts.registry.versions.get, *whose)
                if now.state.is_servable:  # not loaded, but not refused by its probe either: it may be another time
                    raise
        return await parts.threads.write(
            parts.registry.aliases.promote,
            *whose,
            alias=alias,
            expected_revision=expected_revision,
        )


def _revision(if_match: str | None) -> int | None:
    if if_match is None or if_match == "*":
        return None
    found = ETAG.fullmatch(if_match)
    if found is None:
        raise BadRequestError('If-Match takes the ETag of the alias, such as "3".', param="if-match")
    return int(found[1])


def _tagged(response: Response, alias: Alias) -> AliasOut:
    out = AliasOut.of(alias)
    response.headers["etag"] = out.etag
    return out
