"""Shadows: versions that get a copy of a share of an alias's traffic."""

from fastapi import APIRouter

from adapters import Shadow
from server.admin.bodies import NO_BODY, ShadowIn
from server.admin.wire import AliasOut
from server.parts import AdminDep, PartsDep

router = APIRouter(prefix="/admin/v1/tenants/{tenant}/adapters/{adapter}/aliases/{alias}/shadow")


@router.put("")
async def begin(tenant: str, adapter: str, alias: str, asked: ShadowIn, caller: AdminDep, parts: PartsDep) -> AliasOut:
    """Let a version get a copy of `percent` of the alias's requests, while there is room that nobody needs.

    Its answers are thrown away: they are in no answer, no quota and no bill, and in metrics of their own
    (`lorikeet_shadow_…`).
    """
    to = Shadow(asked.version, asked.percent)
    shadowed = await parts.threads.write(parts.registry.aliases.shadow, *(caller, tenant, adapter, to), alias=alias)
    return AliasOut.of(shadowed)


@router.delete("", dependencies=[NO_BODY])
async def end(tenant: str, adapter: str, alias: str, caller: AdminDep, parts: PartsDep) -> AliasOut:
    """No copies any more. An alias that has no shadow stays as it is."""
    return AliasOut.of(
        await parts.threads.write(parts.registry.aliases.shadow, *(caller, tenant, adapter, None), alias=alias)
    )
