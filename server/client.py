"""The client's end of one request: whether it is still there, and what the engine's app may receive from it.

Somebody must await `receive()` all the time, or a hang-up goes unseen while the request waits for its adapter. Here
that is one task, for the whole request.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import anyio
from starlette.types import Message, Receive


class Client:
    """Use as `async with`, after the body was read from `receive`."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = asyncio.Event()
        self._waiting: anyio.CancelScope | None = None

    async def __aenter__(self) -> Self:
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._watcher.cancel()
        with suppress(asyncio.CancelledError):
            await self._watcher

    @property
    def is_gone(self) -> bool:
        """Whether it hung up."""
        return self._gone.is_set()

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Give up what the block waits for when the client hangs up. Check `is_gone` after it.

        Not for the engine's app: that must see the hang-up itself, or what it started would go on without it.
        """
        with anyio.CancelScope() as self._waiting:
            if self.is_gone:
                self._waiting.cancel()
            yield
        self._waiting = None

    def replay(self, body: bytes) -> Receive:
        """A `receive` for the engine's app: this body once, then the hang-up when it happens."""
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await self._gone.wait()
            return {"type": "http.disconnect"}

        return receive

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()
        if self._waiting is not None:
            self._waiting.cancel()
