"""Adapters that are kept resident, whoever else needs the room. The platform's to say: it takes what all share."""

from fastapi import APIRouter

from adapters import Adapter, Caller, ConflictError
from server.admin.bodies import NO_BODY
from server.admin.wire import AdapterOut
from server.parts import Parts, PartsDep, PlatformDep

router = APIRouter(prefix="/admin/v1/tenants/{tenant}/adapters/{adapter}/pin")


@router.put("", dependencies=[NO_BODY])
async def pin(tenant: str, adapter: str, caller: PlatformDep, parts: PartsDep) -> AdapterOut:
    """Keep what the adapter's bare name means resident from now on, and after each promote."""
    async with parts.warm_up.pinning:
        await _require_room(parts, caller, tenant, adapter)
        pinned = await parts.threads.write(parts.registry.adapters.pin, caller, tenant, adapter)
    parts.warm_up.nudge()
    return AdapterOut.of(pinned)


@router.delete("", dependencies=[NO_BODY])
async def unpin(tenant: str, adapter: str, caller: PlatformDep, parts: PartsDep) -> AdapterOut:
    """No longer: it goes when room is needed, as any other."""
    unpinned = await parts.threads.write(parts.registry.adapters.unpin, caller, tenant, adapter)
    parts.warm_up.nudge()
    return AdapterOut.of(unpinned)


async def _require_room(parts: Parts, caller: Caller, tenant: str, adapter: str) -> None:
    """Raises ConflictError `no_room_to_pin`: what is not pinned would have less than a place for each slot, and one."""
    registry, read = parts.registry, parts.threads.read
    found = await read(registry.adapters.get, caller, tenant, adapter)
    if found.is_pinned:
        return
    used, most = len(await read(registry.adapters.pinned, caller, parts.base)), parts.warm_up.most_pins
    needed = await _versions_here(parts, caller, found)
    if used + needed > most:
        raise ConflictError(
            f"Pins have {most} places in this server's memory, {used} of them are taken, and this adapter needs "
            f"{needed}: unpin another, or start the server with a larger max_cpu_loras.",
            code="no_room_to_pin",
        )


async def _versions_here(parts: Parts, caller: Caller, adapter: Adapter) -> int:
    """How many places the adapter's live versions take in this engine."""
    if adapter.live is None:
        return 0
    get, whose = parts.registry.versions.get, (caller, adapter.tenant, adapter.name)
    versions = [await parts.threads.read(get, *whose, arm.version) for arm in adapter.live.arms]
    targets = [version.target for version in versions if version.state.is_servable]
    return sum(not target.kind.is_model and parts.base.takes(target.base_fingerprint) for target in targets)
