"""What is loaded."""

from fastapi import APIRouter

from server.admin.wire import Page, ResidentOut
from server.parts import PartsDep, PlatformDep

router = APIRouter(prefix="/admin/v1/residency")


@router.get("")
async def list_residents(_caller: PlatformDep, parts: PartsDep) -> Page[ResidentOut]:
    """The adapters in the engine with their leases, least recently used first."""
    return Page(data=[ResidentOut.of(resident) for resident in parts.residency.snapshot()])
