"""An adapter's versions: look, annotate, retire, restore."""

from fastapi import APIRouter

from server.admin.bodies import NO_BODY, Number, VersionPatch
from server.admin.paging import AfterDep, BeforeDep, cut, page_of
from server.admin.wire import Page, VersionOut
from server.parts import AdminDep, PartsDep

router = APIRouter(prefix="/admin/v1/tenants/{tenant}/adapters/{adapter}/versions")


@router.get("")
async def list_versions(
    tenant: str, adapter: str, page: BeforeDep, caller: AdminDep, parts: PartsDep
) -> Page[VersionOut]:
    """An adapter's versions, the newest first."""
    versions = await parts.threads.read(
        parts.registry.versions.list, caller, tenant, adapter, before=page.before, limit=page.limit
    )
    return page_of(versions, page.limit, VersionOut.of, lambda version: version.number)


@router.get("/{number}")
async def get_version(tenant: str, adapter: str, number: Number, caller: AdminDep, parts: PartsDep) -> VersionOut:
    """One version."""
    return VersionOut.of(await parts.threads.read(parts.registry.versions.get, caller, tenant, adapter, number))


@router.get("/{number}/lineage")
async def list_lineage(
    tenant: str, adapter: str, number: Number, page: AfterDep, caller: AdminDep, parts: PartsDep
) -> Page[VersionOut]:
    """A version, then all that it was made from, the nearest first."""
    line = await parts.threads.read(parts.registry.versions.lineage, caller, tenant, adapter, number)
    rows = cut(line, page.limit, lambda version: version.label, page.after)
    return page_of(rows, page.limit, VersionOut.of, lambda version: version.label)


@router.patch("/{number}")
async def annotate(
    tenant: str, adapter: str, number: Number, patch: VersionPatch, caller: AdminDep, parts: PartsDep
) -> VersionOut:
    """Its tags or its note, anew."""
    said = {name: getattr(patch, name) for name in patch.model_fields_set}
    return VersionOut.of(
        await parts.threads.write(parts.registry.versions.annotate, caller, tenant, adapter, number, **said)
    )


@router.delete("/{number}", dependencies=[NO_BODY])
async def retire(tenant: str, adapter: str, number: Number, caller: AdminDep, parts: PartsDep) -> VersionOut:
    """No request resolves to it from now on; those that run with it finish."""
    version = await parts.threads.write(parts.registry.versions.retire, caller, tenant, adapter, number)
    await parts.leases.drop(version)
    return VersionOut.of(version)


@router.post("/{number}/restore", dependencies=[NO_BODY])
async def restore(tenant: str, adapter: str, number: Number, caller: AdminDep, parts: PartsDep) -> VersionOut:
    """A retired version can be asked again, by its number; no alias moves. An adapter is probed at its next load."""
    return VersionOut.of(await parts.threads.write(parts.registry.versions.restore, caller, tenant, adapter, number))
