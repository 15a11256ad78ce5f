"""A server in a process of its own: the real app on the real uvicorn, over an engine that speaks at a fixed pace.

It measures itself: how long each token took from when the engine owed it to the end of our `send`, and its own CPU.
"""

import asyncio
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from adapters import (
    Base,
    Caller,
    Manifest,
    Module,
    ProbeVerdict,
    Registry,
    Scope,
    TenantLimits,
    folder_members,
    open_registry,
)
from server.app import create_app
from server.bench.random_adapter import write_random_adapter
from server.engine.fake import FakeEngine
from server.engine.fake_pace import DUE
from server.in_flight import InFlight
from server.serving import Server
from server.settings import ServerSettings

OPERATOR: Final = Caller.operator()
FIGURES_PATH: Final = "/bench/figures"
START_SECONDS: Final = 60
RANK: Final = 8
WIDTH: Final = 32
BASE: Final = Base(
    name="bench",
    fingerprint=f"sha256:{'0' * 64}",
    path="",
    modules={"model.layers.0.self_attn.q_proj": Module(WIDTH, WIDTH)},
    chat_template_digest=None,
    parameter_count=0,
    size_bytes=0,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)


@dataclass(frozen=True, slots=True)
class Staged:
    """What stands there: an engine of this pace, and these tenants, each with an adapter called `own`."""

    tokens_per_second: float
    max_num_seqs: int
    tenants: Mapping[str, TenantLimits]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    url: str
    keys: Mapping[str, str]


@contextmanager
def serving(staged: Staged) -> Iterator[Served]:
    """The server, for as long as the block lasts."""
    here, there = get_context("spawn").Pipe()
    with tempfile.TemporaryDirectory(prefix="lorikeet-bench-") as home:
        process = get_context("spawn").Process(target=_main, args=(staged, home, there), daemon=True)
        process.start()
        there.close()  # its end of it: if the process dies, so does the wait
        try:
            if not here.poll(START_SECONDS):
                raise TimeoutError("the server did not start")
            yield here.recv()
        finally:
            process.terminate()
            process.join()


def _main(staged: Staged, home: str, parent: Connection) -> None:
    settings = ServerSettings(
        **{"max_loras": 16, "max_num_seqs": staged.max_num_seqs, "drain_seconds": 1, **staged.settings}
    )
    engine = FakeEngine(
        BASE.name,
        slots=settings.max_loras,
        host_slots=settings.max_cpu_loras,
        tokens_per_second=staged.tokens_per_second,
        max_num_seqs=staged.max_num_seqs,
    )
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    with open_registry(Path(home) / "home") as registry:
        served = Served(f"http://127.0.0.1:{listener.getsockname()[1]}", _fill(registry, staged, Path(home)))
        in_flight = InFlight()
        app = create_app(settings, registry, engine, base=BASE, secret=b"bench" * 8, in_flight=in_flight)
        server = Server(settings, _Timed(app), in_flight, starting=nullcontext(), on_ready=lambda: parent.send(served))
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(server.serve(sockets=[listener]))


def _fill(registry: Registry, staged: Staged, folder: Path) -> Mapping[str, str]:
    registry.bases.add(OPERATOR, BASE)
    keys = {}
    for seed, (tenant, limits) in enumerate(staged.tenants.items()):
        registry.tenants.create(OPERATOR, tenant)
        registry.tenants.set_limits(OPERATOR, tenant, limits)
        members = folder_members(write_random_adapter(folder / tenant, BASE, rank=RANK, seed=seed))
        # Probed already: at some paces a probe takes a quarter of a minute.
        registry.versions.publish(OPERATOR, tenant, "own", members, base=BASE.fingerprint, probe=_accept)
        registry.aliases.promote(OPERATOR, tenant, "own", 1)
        keys[tenant] = registry.keys.issue(OPERATOR, tenant, name="bench", scopes=frozenset({Scope.INFER})).secret
    return keys


def _accept(_folder: Path, _manifest: Manifest) -> ProbeVerdict:
    return ProbeVerdict(is_accepted=True)


class _Timed:
    """The app, with a watch on each token. `GET /bench/figures` tells, and begins anew."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._begin()

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] == FIGURES_PATH:
            await JSONResponse(self._figures())(scope, receive, send)
            self._begin()
            return
        clock = asyncio.get_running_loop().time

        async def send_timed(message: Message) -> None:
            await send(message)
            due = DUE.get(None)
            if due is not None and message["type"] == "http.response.body" and message.get("more_body"):
                self._added.append(clock() - due)

        self._requests += 1
        await self._app(scope, receive, send_timed)

    def _begin(self) -> None:
        self._added: list[float] = []
        self._requests = 0
        self._began = time.monotonic()
        self._cpu_began = time.process_time()

    def _figures(self) -> dict[str, Any]:
        return {
            "seconds": time.monotonic() - self._began,
            "cpu_seconds": time.process_time() - self._cpu_began,
            "requests": self._requests,
            "tokens": len(self._added),
            "added_ms": [1000 * seconds for seconds in self._added],
        }
