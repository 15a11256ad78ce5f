"""A real uvicorn on 127.0.0.1, in a thread and an event loop of its own, for as long as a `with` block lasts.

`httpx.ASGITransport` gathers whole bodies before it answers, so streams and hang-ups are only tested honestly here.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

import uvicorn
from starlette.types import ASGIApp

Value = TypeVar("Value")


class LiveServer:
    """Runs `make_app()` behind uvicorn. The app is built inside the server's loop, and its lifespan is honoured."""

    def __init__(
        self,
        make_app: Callable[[], ASGIApp],
        *,
        drain_seconds: int = 5,
        start_seconds: float = 300,
        second: socket.socket | None = None,
        http: Any = "auto",
    ) -> None:
        """`second` is a bound socket to listen on besides, `http` makes uvicorn's connections."""
        self._second = second
        self._make_app = make_app
        self._drain_seconds = drain_seconds
        self._start_seconds = start_seconds
        self._http = http
        self._socket = socket.socket()
        self._thread = threading.Thread(target=self._run, name="live-server", daemon=True)
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        self._socket.bind(("127.0.0.1", 0))
        self._thread.start()
        self._loop = self._started.result(self._start_seconds)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join(self._start_seconds)
        self._socket.close()

    @property
    def base_url(self) -> str:
        """`http://127.0.0.1:<port>`, without a trailing slash."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def call(self, work: Coroutine[Any, Any, Value], *, deadline_seconds: float = 60) -> Value:
        """Run a coroutine in the server's loop and wait for what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(deadline_seconds)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._started.done():
                raise
            self._socket.close()
            self._started.set_exception(error)

    async def _serve(self) -> None:
        config = uvicorn.Config(
            self._make_app(),
            http=self._http,
            log_level="warning",
            lifespan="on",
            timeout_graceful_shutdown=self._drain_seconds,
        )
        self._server = _Server(config, self._started)
        await self._server.serve(sockets=[self._socket, *([self._second] if self._second else [])])


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config, started: "Future[asyncio.AbstractEventLoop]") -> None:
        super().__init__(config)
        self._when_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._when_started.set_result(asyncio.get_running_loop())


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
