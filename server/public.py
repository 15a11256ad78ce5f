"""The surface beside inference: the models a caller can name, health, metrics."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from adapters import Adapter
from server.engine.protocol import Health
from server.errors import NotReadyError
from server.parts import AskerDep, PartsDep, PlatformDep

router = APIRouter()


@router.get("/v1/models")
async def models(caller: AskerDep, parts: PartsDep) -> dict[str, object]:
    """The base, and the caller's own adapters that have a live version: each `id` works as `model`, and stands once."""
    adapters = await parts.threads.read(parts.registry.adapters.list, caller, caller.tenant or "")
    base_name = parts.engine.info.base_name
    base = _model(base_name, int(parts.base.created_at.timestamp()), "lorikeet")
    own = [
        _adapter(adapter, base_name) for adapter in adapters if adapter.live is not None and adapter.name != base_name
    ]
    return {"object": "list", "data": [base, *own]}


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process is up."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(parts: PartsDep) -> dict[str, str]:
    """The engine can answer."""
    health = parts.engine.health()
    if health is not Health.READY:
        raise NotReadyError(f"The engine is {health}.")
    return {"status": "ready"}


@router.get("/metrics")
async def metrics(_caller: PlatformDep, parts: PartsDep) -> Response:
    """Ours and the engine's, for Prometheus."""
    parts.metrics.show_residents((resident.labels, resident.leases) for resident in parts.residency.snapshot())
    return Response(parts.metrics.page(), headers={"content-type": CONTENT_TYPE_LATEST})


def _adapter(adapter: Adapter, base_name: str) -> dict[str, object]:
    created = int(adapter.created_at.timestamp())
    return _model(adapter.name, created, adapter.tenant) | {"parent": base_name, "version": adapter.live}


def _model(name: str, created: int, owner: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}
