"""uvicorn's server: says when it listens, lets what runs end before it stops, and stops when the engine is lost."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from time import monotonic
from types import FrameType
from typing import Final

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from server.connections import KEEP_ALIVE_SECONDS, Connection
from server.in_flight import InFlight
from server.settings import ServerSettings

END_SECONDS: Final = 5
"""For the last words to those whose requests are cut off, and for what does not listen."""
SIGNALS_AT_ONCE: Final = 2
"""The second signal cuts what runs; the third leaves without a word. While it starts, the second does."""


class Server(uvicorn.Server):
    """Starts up inside `starting`, and calls `on_ready` once it listens.

    The first signal to stop begins to drain: what runs has `drain_seconds`, what comes is told to go elsewhere.
    """

    def __init__(
        self,
        settings: ServerSettings,
        lorikeet: ASGIApp,
        in_flight: InFlight,
        *,
        starting: AbstractContextManager[None],
        on_ready: Callable[[], None],
    ) -> None:
        self._noted = _Noted(lorikeet)
        super().__init__(
            uvicorn.Config(
                self._noted,
                http=partial(Connection, write_timeout_seconds=settings.write_timeout_seconds),  # type: ignore[arg-type]  # called, no more
                lifespan="on",
                log_level="warning",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=END_SECONDS,
            )
        )
        self._in_flight = in_flight
        self._starting = starting
        self._on_ready = on_ready
        self._drain_seconds = settings.drain_seconds
        self._signals = 0
        self._asked_at = 0.0
        self.were_cut = 0
        """Requests that still ran when the patience ended."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises what kept the app from starting, unless it was to stop."""
        try:
            with self._starting, _silent_uvicorn():
                await super().startup(sockets)
        except SystemExit as exit_:  # what uvicorn makes of an app that does not start
            if not self._signals:
                raise (self._noted.failure or exit_) from None
            self.should_exit = True
        if not self._signals:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  — uvicorn's
        """Note it, and no more: this may come in the midst of anything."""
        self._signals += 1
        self._asked_at = self._asked_at or monotonic()
        if not self.started:
            if self._signals >= SIGNALS_AT_ONCE:
                os._exit(0)  # nothing was served; the engine's processes end with this one
            asyncio.get_running_loop().call_soon_threadsafe(self._in_flight.cut)  # once the engine lets the loop run
        if self._signals > SIGNALS_AT_ONCE:
            self.force_exit = self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now. Called ten times a second."""
        is_over = await super().on_tick(counter)
        return is_over or self._in_flight.is_lost or (self._signals > 0 and self._has_drained())

    def _has_drained(self) -> bool:
        self._in_flight.drain()
        running = len(self.server_state.tasks)
        if running and self._signals < SIGNALS_AT_ONCE and monotonic() - self._asked_at < self._drain_seconds:
            return False
        self.were_cut = running
        self._in_flight.cut()
        return True


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
