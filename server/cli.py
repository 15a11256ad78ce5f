"""`lorikeet serve`: says what it does, step by step, and refuses early what could only fail late."""

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters import Base, Caller, Registry, RegistrySettings
from server.app import create_app
from server.engine.environment import prepare_environment
from server.engine.protocol import Engine, EngineError, Health
from server.errors import SettingsError
from server.secret import read_or_make_secret
from server.settings import ServerSettings
from server.single import only_server

WATCH_SECONDS = 0.5
ENGINE_FAILED = 1
LOST = {Health.DEAD, Health.STALLED}
"""What only a new process mends: a step that takes this long never ends."""

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def serve(
    base: Annotated[
        str | None,
        typer.Option(help="The base: a name, fingerprint or path in the registry, or a whole model: acme/model@2."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on.")] = None,
    max_loras: Annotated[int | None, typer.Option(help="Adapters that one batch can mix.")] = None,
    max_cpu_loras: Annotated[int | None, typer.Option(help="Adapters kept in host RAM.")] = None,
    max_lora_rank: Annotated[int | None, typer.Option(help="The highest rank: 1, 8, 16, 32, 64, 128 …")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Prompt and answer together, in tokens.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Sequences in one batch.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, bfloat16, float16 or float32.")] = None,
) -> None:
    """Serve the base and every tenant's adapters over an OpenAI-compatible API.

    Each option is also read from the environment: --max-loras is LORIKEET_MAX_LORAS.

    Example: lorikeet serve --base smollm2-135m-instruct --port 8000
    """
    flags = dict(locals())
    settings = ServerSettings.build(flags)
    prepare_environment()
    with _listening(settings) as listener:
        registry_settings = RegistrySettings()
        with _step(f"registry at {registry_settings.home}"):
            registry = registry_settings.open()
        with registry, _alone(registry_settings), ExitStack() as held:
            _refuse_open_door(settings, registry)
            with _step(f"base {settings.base}"):
                found = held.enter_context(registry.hold_base(Caller.operator(), settings.base))
            secret = read_or_make_secret(registry_settings.home.expanduser())
            with _step("vLLM's modules"):
                engine = _build_engine(settings, found, settings.rank_step(registry.limits.max_rank))
            server = _Server(settings, create_app(settings, registry, engine, base=found, secret=secret))
            with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner, _stopped_cleanly():
                runner.run(_run(server, engine, listener))
    if server.has_lost_engine:
        typer.echo("lorikeet: the engine died or hangs; start the server again", err=True)
        raise typer.Exit(ENGINE_FAILED)


class _Server(uvicorn.Server):
    """Says when it listens, raises what kept the app from starting, and stops when the engine is lost."""

    def __init__(self, settings: ServerSettings, lorikeet: ASGIApp) -> None:
        self._noted = _Noted(lorikeet)
        super().__init__(
            uvicorn.Config(
                self._noted,
                lifespan="on",
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=settings.drain_seconds,
            )
        )
        self.has_lost_engine = False
        self._address = f"http://{settings.host}:{settings.port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        with _step("engine: loading the base into vLLM"):
            try:
                with _silent_uvicorn():
                    await super().startup(sockets)
            except SystemExit as exit_:  # what uvicorn makes of an app that does not start
                raise (self._noted.failure or exit_) from None
        typer.echo(f"==> listening on {self._address}")

    async def watch(self, engine: Engine) -> None:
        while engine.health() not in LOST:  # noqa: ASYNC110  — health is polled: a process dies unannounced
            await asyncio.sleep(WATCH_SECONDS)
        self.has_lost_engine = self.should_exit = True


class _Noted:
    """The app, and what kept it from starting."""

    def __init__(self, lorikeet: ASGIApp) -> None:
        self._lorikeet = lorikeet
        self.failure: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._lorikeet(scope, receive, send)
        except Exception as error:
            if scope["type"] == "lifespan":
                self.failure = error
            raise


async def _run(server: _Server, engine: Engine, listener: socket.socket) -> None:
    watching = asyncio.create_task(server.watch(engine))
    try:
        await server.serve(sockets=[listener])
    except EngineError as error:
        typer.echo(f"lorikeet: the engine did not start: {error}", err=True)
        raise typer.Exit(ENGINE_FAILED) from error
    finally:
        watching.cancel()


def _build_engine(settings: ServerSettings, base: Base, max_rank: int) -> Engine:
    from server.engine.vllm import VllmEngine  # noqa: PLC0415  — seconds long, and it reads the environment

    return VllmEngine(
        model=Path(base.path),
        base_name=base.name,
        slots=settings.max_loras,
        host_slots=settings.max_cpu_loras,
        max_rank=max_rank,
        target_modules=sorted({name.rpartition(".")[2] for name in base.modules}),
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        kv_cache_memory_bytes=settings.kv_cache_memory_bytes,
        dtype=settings.dtype,
    )


@contextmanager
def _silent_uvicorn() -> Iterator[None]:
    """It logs the traceback of a failed start, which is raised here as it is."""
    log = logging.getLogger("uvicorn.error")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def _stopped_cleanly() -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more when it is done: that must not make a failure of it."""
    before = {stop: signal.signal(stop, lambda *_: None) for stop in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)


@contextmanager
def _listening(settings: ServerSettings) -> Iterator[socket.socket]:
    """The port, taken before the engine starts; uvicorn begins to listen on it once the engine is up."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise SettingsError(
                f"can't listen on {settings.host} port {settings.port}: {error.strerror}", code="port_unavailable"
            ) from error
        yield listener


def _alone(settings: RegistrySettings) -> AbstractContextManager[None]:
    """Several servers may share a PostgreSQL, but not a file."""
    is_shared = (settings.database_url or "").startswith("postgresql")
    return nullcontext() if is_shared else only_server(settings.home.expanduser())


def _refuse_open_door(settings: ServerSettings, registry: Registry) -> None:
    operator = Caller.operator()
    owners = [None, *(tenant.name for tenant in registry.tenants.list(operator))]
    if not settings.is_loopback and not any(registry.keys.list(operator, owner) for owner in owners):
        raise SettingsError(
            f"{settings.host} is reachable from other machines, and there is no API key yet: make one with "
            "'lorikeet adapters keys create --platform', or listen on 127.0.0.1",
            code="no_api_key",
        )


@contextmanager
def _step(name: str) -> Iterator[None]:
    typer.echo(f"==> {name} … ", nl=False)
    began = monotonic()
    try:
        yield
    except BaseException:
        typer.echo("failed")
        raise
    typer.echo(f"{monotonic() - began:.1f} s")
