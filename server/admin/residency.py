"""What is loaded, and how full the three tiers are: slots, host RAM, this machine's disk."""

from collections.abc import Collection
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from server.admin.wire import Page
from server.parts import PartsDep, PlatformDep
from server.residents import Resident

router = APIRouter(prefix="/admin/v1/residency")


class ResidentOut(BaseModel):
    """An adapter in the engine, or on its way there."""

    tenant: str
    adapter: str
    version: str
    leases: int
    is_loaded: bool
    tier: Literal["slot", "host", "loading"]
    """`slot`: it has one now, by its requests' turns; `host`: it lies in host RAM."""
    is_pinned: bool
    size_bytes: int
    """As it lies on the disk."""
    unused_seconds: float | None
    """Since its last lease ended; null: it has had none."""

    @classmethod
    def of(cls, resident: Resident, in_slots: Collection[str]) -> "ResidentOut":
        """As it goes out. `in_slots`: what has a slot, as the engine calls it."""
        tier: Literal["slot", "host"] = "slot" if resident.name in in_slots else "host"
        return cls(
            **resident.labels._asdict(),
            leases=resident.leases,
            is_loaded=resident.is_loaded,
            tier=tier if resident.is_loaded else "loading",
            is_pinned=resident.is_pinned,
            size_bytes=resident.size_bytes,
            unused_seconds=resident.unused_seconds,
        )


class PlacesOut(BaseModel):
    """How much of a tier is used."""

    used: int
    of: int


class HostOut(PlacesOut):
    """Host RAM: the place that is kept spare is not counted."""

    bytes: int
    """Of the adapters there, as they lie on the disk."""


class DiskOut(BaseModel):
    """This machine's disk. `of` is the cache's budget; null where the blobs themselves lie here, and none is theirs."""

    bytes: int
    of: int | None


class TiersOut(BaseModel):
    """Where adapters are, from the engine outwards."""

    slots: PlacesOut
    host: HostOut
    disk: DiskOut


class ResidencyOut(Page[ResidentOut]):
    """The adapters in the engine, least recently used first, and how full its tiers are."""

    tiers: TiersOut


@router.get("")
async def show_residency(caller: PlatformDep, parts: PartsDep) -> ResidencyOut:
    """The adapters in the engine with their leases, least recently used first; and how full each tier is."""
    disk = await parts.threads.read(parts.registry.disk_use, caller)
    residents, in_slots = parts.residency.snapshot(), parts.turns.holders
    return ResidencyOut(
        data=[ResidentOut.of(resident, in_slots) for resident in residents],
        tiers=TiersOut(
            slots=PlacesOut(used=len(in_slots), of=parts.engine.info.slots),
            host=HostOut(
                used=parts.residency.places,
                of=parts.residency.capacity,
                bytes=sum(resident.size_bytes for resident in residents if resident.is_loaded),
            ),
            disk=DiskOut(bytes=disk.size_bytes, of=disk.budget_bytes),
        ),
    )
