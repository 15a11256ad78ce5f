"""The server's ASGI app: which request goes where, and what lives as long as the server does."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters import Base, LorikeetError, Registry
from adapters import Scope as KeyScope
from server import openapi, public
from server.admin.routes import ROUTERS as ADMIN_ROUTERS
from server.admission import Uploads
from server.callers import authenticate, require
from server.engine.protocol import Engine, EngineError
from server.errors import error_response, from_framework
from server.gateway import PATHS, Gateway
from server.in_flight import InFlight
from server.leasing import Leases
from server.ledger import Ledger
from server.liveness import Liveness
from server.logs import AccessLog
from server.metrics import Metrics
from server.middleware import BodyCap, Guard, RequestId
from server.parts import Parts
from server.ports import Ports
from server.queue_series import QueueSeries
from server.quotas import Quotas
from server.residency import Residency
from server.residency_series import ResidencySeries
from server.server_series import ServerSeries
from server.settings import ServerSettings
from server.shadow import Shadows
from server.threads import Threads
from server.tracing import Traced
from server.turns import Turns
from server.warm_up import WarmUp

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

ROUTERS = (public.router, openapi.router, *ADMIN_ROUTERS)
ADMIN_PREFIX = "/admin/"
OPEN_TO_THE_END = frozenset({"/healthz", "/readyz", "/metrics"})
UPLOADS_AT_ONCE = 8
"""Of all tenants together, and as many parts of others. Each may take `max_upload_bytes` of disk while it comes in."""
FRAMING_BYTES = 1 << 20
"""What an upload's body may have beyond the weights: the config, and multipart's or an archive's own bytes."""


def create_app(
    settings: ServerSettings,
    registry: Registry,
    engine: Engine,
    *,
    base: Base,
    secret: bytes,
    in_flight: InFlight | None = None,
    tracer: "Tracer | None" = None,
) -> ASGIApp:
    """The whole server. `base` is what `engine` holds, `secret` keeps tenants apart in the prefix cache.

    The engine starts and stops with the app's lifespan, in the loop that the app runs in; the registry stays open.
    """
    metrics, threads, in_flight = Metrics(), Threads(), in_flight or InFlight()
    liveness = Liveness(
        engine,
        in_flight,
        stall_seconds=settings.stall_seconds,
        step_seconds=settings.step_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
    )
    residency = Residency(
        engine,
        ResidencySeries(metrics.registry),
        slots=settings.max_loras,
        host_slots=settings.max_cpu_loras,
        load_timeout_seconds=settings.load_timeout_seconds,
    )
    turns = Turns(
        capacity=settings.places,
        slots=settings.max_loras,
        max_queued=settings.max_num_queued_reqs or 4 * settings.max_num_seqs,
        patience_seconds=settings.queue_timeout_seconds,
    )
    leases = Leases(registry, threads, engine, residency, turns, metrics, base=base)
    uploads, uploads_in_parts = (Uploads(at_once=UPLOADS_AT_ONCE) for _ in range(2))
    ledger = Ledger(registry, threads, every_seconds=settings.ledger_seconds)
    quotas = Quotas(ledger.month_tokens)
    metrics.registry.register(
        ServerSeries(is_ready=liveness.is_ready, behind_seconds=ledger.behind_seconds, free_bytes=registry.free_bytes)
    )
    metrics.registry.register(QueueSeries(turns))
    parts = Parts(
        *(registry, engine, base, residency, leases, metrics, threads, uploads, uploads_in_parts, ledger, turns),
        warm_up=WarmUp(registry, threads, leases, residency, in_flight, base=base, most_pins=settings.most_pins),
        in_flight=in_flight,
        liveness=liveness,
        shadows=Shadows(registry, threads, engine, leases, turns, metrics, in_flight),
    )
    gateway = Gateway(parts, quotas, secret=secret)
    app: ASGIApp = _Doors(Traced(gateway, tracer, PATHS), _AdminDoor(_surface(parts), registry, threads), in_flight)
    limits = registry.limits
    app = BodyCap(
        app,
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=limits.max_upload_bytes + FRAMING_BYTES,
        max_part_bytes=max(limits.max_upload_bytes, limits.max_model_bytes) + FRAMING_BYTES,
    )
    if settings.admin_port is not None:
        app = Ports(app, admin_port=settings.admin_port)
    return RequestId(AccessLog(Guard(app)))


class _Doors:
    """Inference goes to the gateway, all else to the routes. Once the server stops, only OPEN_TO_THE_END answers."""

    def __init__(self, gateway: ASGIApp, surface: ASGIApp, in_flight: InFlight) -> None:
        self._in_flight = in_flight
        self._gateway = gateway
        self._surface = surface

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_TO_THE_END:
            self._in_flight.admit()
        is_inference = scope["type"] == "http" and scope["path"] in PATHS
        await (self._gateway if is_inference else self._surface)(scope, receive, send)


class _AdminDoor:
    """Nobody's body is read in the admin API before it is known that they may use it: FastAPI would parse it first."""

    def __init__(self, surface: ASGIApp, registry: Registry, threads: Threads) -> None:
        self._surface = surface
        self._registry = registry
        self._threads = threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(ADMIN_PREFIX):
            caller = await authenticate(self._registry, self._threads, Headers(scope=scope))
            scope["state"]["caller"] = require(caller, KeyScope.ADMIN, KeyScope.PLATFORM)
        await self._surface(scope, receive, send)


def _surface(parts: Parts) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan, redirect_slashes=False)
    app.state.parts = parts
    for router in ROUTERS:
        app.include_router(router)
    for kind in (LorikeetError, EngineError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answer_error)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    parts: Parts = app.state.parts
    async with parts.ledger:
        try:
            await parts.engine.start()
            async with AsyncExitStack() as entered:
                await entered.enter_async_context(parts.liveness)
                with parts.in_flight.until_ended():
                    await entered.enter_async_context(parts.warm_up)
                yield {}
            # uvicorn has drained what ran, or cut it off after its patience, before it comes back here.
        finally:
            await parts.shadows.close()
            await parts.residency.close()
            await parts.engine.stop()


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_response(from_framework(error), request.url.path)
