"""What the routes are given: the server's parts, and who calls.

A route's signature says what it needs and who may call it: `PartsDep`, and one of `CallerDep`, `AdminDep`,
`PlatformDep`. Whose things an admin may touch is the registry's to decide.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from adapters import Base, Caller, Registry, Scope
from server.admission import Uploads
from server.callers import authenticate, of_request, require
from server.engine.protocol import Engine
from server.in_flight import InFlight
from server.leasing import Leases
from server.ledger import Ledger
from server.liveness import Liveness
from server.metrics import Metrics
from server.residency import Residency
from server.shadow import Shadows
from server.threads import Threads
from server.turns import Turns
from server.warm_up import WarmUp


@dataclass(frozen=True, slots=True)
class Parts:
    """Built once by `create_app`."""

    registry: Registry
    engine: Engine
    base: Base
    residency: Residency
    leases: Leases
    metrics: Metrics
    threads: Threads
    uploads: Uploads
    """Those that end at the gate: whole ones, and the last step of those in parts."""
    uploads_in_parts: Uploads
    """The parts that come in."""
    ledger: Ledger
    turns: Turns
    warm_up: WarmUp
    in_flight: InFlight
    liveness: Liveness
    shadows: Shadows


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


PartsDep = Annotated[Parts, Depends(_parts)]


async def _caller(request: Request, parts: PartsDep) -> Caller:
    known: Caller | None = getattr(request.state, "caller", None)  # who came in by the admin's door is known
    caller = known or await authenticate(parts.registry, parts.threads, request.headers)
    return of_request(caller, request.headers, request.state.request_id)


CallerDep = Annotated[Caller, Depends(_caller)]
"""Whoever holds a live API key."""


async def _asker(caller: CallerDep) -> Caller:
    return require(caller, Scope.INFER)


async def _admin(caller: CallerDep) -> Caller:
    return require(caller, Scope.ADMIN, Scope.PLATFORM)


async def _platform(caller: CallerDep) -> Caller:
    return require(caller, Scope.PLATFORM)


AskerDep = Annotated[Caller, Depends(_asker)]
"""Who may ask adapters."""
AdminDep = Annotated[Caller, Depends(_admin)]
"""Who may manage some tenant, or all."""
PlatformDep = Annotated[Caller, Depends(_platform)]
"""Who may manage what all tenants share."""
