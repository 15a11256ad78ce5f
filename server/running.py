"""A server from its settings to its end: says what it does step by step, and refuses early what would fail late."""

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Timer
from time import monotonic
from typing import TYPE_CHECKING, Final

import typer

from adapters import Base, Caller, Registry, RegistrySettings
from server.app import create_app
from server.connections import set_deadlines
from server.engine.protocol import EngineError
from server.errors import SettingsError
from server.in_flight import InFlight
from server.logs import chosen_format, logging_to
from server.named_base import known_base
from server.secret import read_or_make_secret
from server.serving import Server
from server.settings import ServerSettings, notify_socket
from server.single import only_server
from server.supervisor import CUT_OFF, ENGINE_FAILED, ENGINE_LOST, tell_ready
from server.tracing import tracing_to

if TYPE_CHECKING:
    from server.engine.vllm import VllmEngine

LOST_SECONDS: Final = 30.0
"""After the engine's loss, for everything to be given back: what hangs with it must not keep the next start waiting."""


def run(settings: ServerSettings, registry_settings: RegistrySettings) -> None:
    """Serve until a signal or the engine's loss ends it.

    Raises:
        LorikeetError: what keeps it from starting.
        typer.Exit: the engine did not start, or was lost; or a stop had to cut off what still ran.
    """
    with logging_to(sys.stderr, settings.log_format, settings.log_level), ExitStack() as doors:
        in_flight = InFlight(on_loss=doors.enter_context(_last_resort()))
        listeners = [doors.enter_context(_listening(host, port)) for host, port in settings.doors]
        for listener in listeners:
            set_deadlines(listener, settings.write_timeout_seconds)
        with _step(f"registry at {registry_settings.home}"):
            registry = registry_settings.open()
        with registry, _alone(registry_settings), ExitStack() as held:
            _refuse_open_door(settings, registry)
            with _step(f"base {settings.base}"):
                found = held.enter_context(registry.hold_base(Caller.operator(), known_base(registry, settings.base)))
            secret = read_or_make_secret(registry_settings.home.expanduser())
            with _step("vLLM's modules"):
                engine = build_engine(settings, found, settings.rank_step(registry.limits.max_rank))
            tracer = held.enter_context(tracing_to(settings.otlp_traces_endpoint))
            app = create_app(settings, registry, engine, base=found, secret=secret, tracer=tracer, in_flight=in_flight)
            starting = _step("engine: loading the base into vLLM")
            server = Server(settings, app, in_flight, starting=starting, on_ready=partial(_announce, settings))
            with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
                runner.run(_serve(server, listeners, in_flight))
    if in_flight.is_lost:
        typer.echo("lorikeet: the engine died or hangs; start the server again", err=True)
        raise typer.Exit(ENGINE_LOST)
    if server.were_cut:
        typer.echo(f"lorikeet: {server.were_cut} requests still ran and were cut off", err=True)
        raise typer.Exit(CUT_OFF)


async def _serve(server: Server, listeners: list[socket.socket], in_flight: InFlight) -> None:
    try:
        await server.serve(sockets=listeners)
    except EngineError as error:
        if in_flight.is_lost:
            return
        typer.echo(f"lorikeet: the engine did not start: {error}", err=True)
        raise typer.Exit(ENGINE_FAILED) from error


@contextmanager
def _last_resort() -> Iterator[Callable[[], None]]:
    """What is called at the engine's loss, inside the block: if that has not ended LOST_SECONDS later, all ends."""
    timer = Timer(LOST_SECONDS, os._exit, (ENGINE_LOST,))
    timer.daemon = True
    try:
        yield timer.start
    finally:
        timer.cancel()


def _announce(settings: ServerSettings) -> None:
    address, *admin = [f"http://{host}:{port}" for host, port in settings.doors]
    typer.echo(f"==> listening on {address}{''.join(f', for the admin API on {one}' for one in admin)}")
    tell_ready(notify_socket())


def build_engine(settings: ServerSettings, base: Base, max_rank: int) -> "VllmEngine":
    """vLLM's, not started."""
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
        tool_call_parser=settings.tool_call_parser,
        log_format=chosen_format(settings.log_format),
        otlp_traces_endpoint=settings.otlp_traces_endpoint,
    )


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """The port, taken before the engine starts; uvicorn begins to listen on it once the engine is up."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise SettingsError(
                f"can't listen on {host} port {port}: {error.strerror}", code="port_unavailable"
            ) from error
        yield listener


def _alone(settings: RegistrySettings) -> AbstractContextManager[None]:
    """Several servers may share a PostgreSQL, but not a file."""
    is_shared = (settings.database_url or "").startswith("postgresql")
    return nullcontext() if is_shared else only_server(settings.home.expanduser())


def _refuse_open_door(settings: ServerSettings, registry: Registry) -> None:
    if settings.open_hosts and not _has_live_key(registry):
        raise SettingsError(
            f"{settings.open_hosts[0]} is reachable from other machines, and there is no API key yet: make one with "
            "'lorikeet adapters keys create --platform', or listen on 127.0.0.1",
            code="no_api_key",
        )


def _has_live_key(registry: Registry) -> bool:
    operator, now = Caller.operator(), datetime.now(UTC)
    owners = [None, *(tenant.name for tenant in registry.tenants.list(operator))]
    keys = (key for owner in owners for key in registry.keys.list(operator, owner))
    return any(key.revoked_at is None and (key.expires_at is None or key.expires_at > now) for key in keys)


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
