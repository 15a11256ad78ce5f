"""The surface beside inference: the models a caller can name, health, metrics."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse

from adapters import Adapter, Caller, GrantedAdapter, NotFoundError
from server.parts import AskerDep, Parts, PartsDep, PlatformDep

router = APIRouter()
LISTED = 1000
"""As many as the registry gives in one page."""


@router.get("/v1/models")
async def models(caller: AskerDep, parts: PartsDep) -> dict[str, object]:
    """The base, and the adapters live on it that the caller may ask: each `id` works as `model`.

    Its own by their names, and those that others granted to its tenant as `owner/name`: the first 1,000 of either.
    """
    base = await _base(caller, parts)
    own = await parts.threads.read(
        parts.registry.adapters.list, caller, caller.tenant or "", limit=LISTED, live_on=parts.base
    )
    granted = await parts.threads.read(parts.registry.adapters.granted, caller, limit=LISTED, live_on=parts.base)
    # Whose owner the base is not for is not answered with it.
    owners = {one.tenant for one in own} | {one.tenant for one in granted}
    served = {owner for owner in owners if await parts.leases.is_base_for(owner)}
    parent = base and base["id"]
    live = [_adapter(one.name, one, parent) | {"version": one.live_version} for one in own if one.tenant in served]
    live += [_adapter(one.label, one, parent) for one in granted if one.tenant in served]
    others = [model for model in live if model["id"] != parent]  # each stands once
    return {"object": "list", "data": [*([base] if base else []), *others]}


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process is up."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(parts: PartsDep) -> dict[str, str]:
    """A token was made lately."""
    parts.liveness.require_ready()
    return {"status": "ready"}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(_caller: PlatformDep, parts: PartsDep) -> Response:
    """Ours and the engine's, for Prometheus."""
    parts.metrics.show_residents((resident.labels, resident.leases) for resident in parts.residency.snapshot())
    parts.residency.show(in_slots=len(parts.turns.holders))
    page = await parts.threads.write_out(parts.metrics.page)
    return Response(page, headers={"content-type": CONTENT_TYPE_LATEST})


async def _base(caller: Caller, parts: Parts) -> dict[str, object] | None:
    """None for a base that is a version of somebody's, whose name the caller may not know."""
    if parts.base.version is not None:
        try:
            await parts.threads.read(parts.registry.resolve, caller, parts.base.version)
        except NotFoundError:
            return None
    return _model(parts.engine.info.base_name, int(parts.base.created_at.timestamp()), "lorikeet")


def _adapter(name: str, adapter: Adapter | GrantedAdapter, parent: object) -> dict[str, object]:
    return _model(name, int(adapter.created_at.timestamp()), adapter.tenant) | {"parent": parent}


def _model(name: str, created: int, owner: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}
