"""One client's connection: uvicorn's own, with deadlines on what uvicorn waits for without end.

A client that sends its request line and headers byte by byte, or without end, and one that does not read its answer,
are cut off. To whoever answers it, that is a client that hung up: all is given back the same way.
"""

import asyncio
import socket
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS: Final = 15.0
"""In which the request line and the headers have to come, whole."""
HEAD_BYTES: Final = 1 << 16
"""As much as they may be. httptools itself sets no bound."""
KEEP_ALIVE_SECONDS: Final = 75
"""How long an idle connection stays open: longer than load balancers keep theirs, or they would meet a closed one."""
SEND_BUFFER_BYTES: Final = 1 << 18
"""Of the kernel's memory for what a client has not read yet; ours is a quarter of that."""
LEAST_BYTES_PER_SECOND: Final = 1 << 12
"""That a client reads of its answer while our buffer is full, on the whole: one that holds up its answer for longer
holds a place in the engine's batch, which others wait for."""
READ_BYTES: Final = 3 << 14
"""From a full buffer to one that is written to again, as asyncio has it."""
SILENT_SECONDS: Final = 30
"""Without a sign of life of the client's machine, before it is asked for one."""


class Connection(HttpToolsProtocol):
    """Made by uvicorn for each connection."""

    def __init__(
        self,
        *args: Any,  # noqa: ANN401  — uvicorn's
        write_timeout_seconds: float,
        head_seconds: float = HEAD_SECONDS,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*args, **kwargs)
        self._head_seconds = head_seconds
        self._write_timeout_seconds = self._patience_seconds = write_timeout_seconds
        self._paused_at = 0.0
        self._head_bytes = 0  # of the request line and headers that are coming in
        self._head_deadline = self._write_deadline = _never(self.loop)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A request has to come."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """No deadline holds any more."""
        self._head_deadline.cancel()
        self._write_deadline.cancel()
        super().connection_lost(exc)

    # --- what the client sends

    def data_received(self, data: bytes) -> None:
        """Count what comes before a request's headers end."""
        super().data_received(data)
        if self._head_deadline.cancelled():
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request line and headers are too long.")

    def on_message_begin(self) -> None:
        """The next request on this connection."""
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        """The headers came in time."""
        self._head_deadline.cancel()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        if self._head_deadline.cancelled():
            self._head_bytes = 0
            self._head_deadline = self.loop.call_later(self._head_seconds, self.transport.abort)

    # --- what it reads

    def pause_writing(self) -> None:
        """Our buffer is full: it has to get emptier in time."""
        super().pause_writing()
        self._paused_at = self.loop.time()
        self._write_deadline.cancel()
        self._write_deadline = self.loop.call_later(self._patience_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It did. The time that took is used up, and only what was read gives any back."""
        self._write_deadline.cancel()
        left = self._patience_seconds - (self.loop.time() - self._paused_at) + READ_BYTES / LEAST_BYTES_PER_SECOND
        self._patience_seconds = min(left, self._write_timeout_seconds)
        super().resume_writing()


def set_deadlines(listener: socket.socket, write_timeout_seconds: float) -> None:
    """What the kernel watches, for all connections that come in here: a machine that is gone, or reads nothing.

    Linux hands these on from the listening socket.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", SILENT_SECONDS),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", int(1000 * write_timeout_seconds)),
    ):
        option = getattr(socket, name, None)  # not on every system
        if option is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


def _never(loop: asyncio.AbstractEventLoop) -> asyncio.TimerHandle:
    timer = loop.call_later(0, lambda: None)
    timer.cancel()
    return timer
