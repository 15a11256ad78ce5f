"""The server's ASGI app: which request goes where, and what lives as long as the server does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters import Base, LorikeetError, Registry
from adapters import Scope as KeyScope
from server import public
from server.admin.routes import ROUTERS as ADMIN_ROUTERS
from server.admission import Uploads
from server.callers import authenticate, require
from server.engine.protocol import Engine, EngineError
from server.errors import error_response, from_framework
from server.gateway import PATHS, Gateway
from server.leasing import Leases
from server.ledger import Ledger
from server.metrics import Metrics
from server.middleware import BodyCap, Guard, RequestId
from server.parts import Parts
from server.quotas import Quotas
from server.residency import Residency
from server.settings import ServerSettings
from server.threads import Threads

ROUTERS = (public.router, *ADMIN_ROUTERS)
ADMIN_PREFIX = "/admin/"
UPLOADS_AT_ONCE = 8
"""Of all tenants together, and as many parts of others. Each may take `max_upload_bytes` of disk while it comes in."""
FRAMING_BYTES = 1 << 20
"""What an upload's body may have beyond the weights: the config, and multipart's or an archive's own bytes."""


def create_app(settings: ServerSettings, registry: Registry, engine: Engine, *, base: Base, secret: bytes) -> ASGIApp:
    """The whole server. `base` is what `engine` holds, `secret` keeps tenants apart in the prefix cache.

    The engine starts and stops with the app's lifespan, in the loop that the app runs in; the registry stays open.
    """
    metrics, threads = Metrics(), Threads()
    residency = Residency(engine, host_slots=settings.max_cpu_loras, load_timeout_seconds=settings.load_timeout_seconds)
    leases = Leases(registry, threads, engine, residency, metrics, base=base)
    uploads, uploads_in_parts = (Uploads(at_once=UPLOADS_AT_ONCE) for _ in range(2))
    ledger = Ledger(registry, threads, every_seconds=settings.ledger_seconds)
    quotas = Quotas(ledger.month_tokens)
    parts = Parts(registry, engine, base, residency, leases, metrics, threads, uploads, uploads_in_parts, ledger)
    gateway = Gateway(registry, threads, engine, leases, metrics, quotas, ledger, base=base, secret=secret)
    app: ASGIApp = _Doors(gateway, _AdminDoor(_surface(parts), registry, threads))
    limits = registry.limits
    app = BodyCap(
        app,
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=limits.max_upload_bytes + FRAMING_BYTES,
        max_part_bytes=max(limits.max_upload_bytes, limits.max_model_bytes) + FRAMING_BYTES,
    )
    return RequestId(Guard(app))


class _Doors:
    """Inference goes to the gateway, all else to the routes."""

    def __init__(self, gateway: ASGIApp, surface: ASGIApp) -> None:
        self._gateway = gateway
        self._surface = surface

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
            yield {}
            # uvicorn has drained what ran, or cut it off after its patience, before it comes back here.
        finally:
            await parts.residency.close()
            await parts.engine.stop()


async def _answer_error(_request: Request, error: Exception) -> Response:
    return error_response(from_framework(error))
