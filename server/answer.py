"""The engine's answer on its way to the client: our headers on it, and its errors in our shape.

The start is held back until the first bytes come, for a status line can't be taken back.
"""

import json
import re
from http import HTTPStatus
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import Message, Scope, Send

from server.client import Client
from server.engine.protocol import Engine, EngineDeadError, Health
from server.errors import HEADERS, error_body, error_response
from server.metering import Outcome

ADAPTER_HEADER = "x-lorikeet-adapter"
PATH_LIKE = re.compile(r"(?<![\w.:/])(?:/[\w.@+-]+){2,}/?|\b[A-Za-z]:\\\S+")
CODES = {400: "invalid_request", 404: "not_found", 413: "request_too_large", 422: "invalid_request", 501: "unsupported"}
"""status of the engine's app → our code for it."""


class Answer:
    """Wraps the `send` of one request."""

    def __init__(self, scope: Scope, send: Send, client: Client, engine: Engine, *, adapter: str | None) -> None:
        self._status = 0
        self._is_complete = False
        self._scope = scope
        self._send = send
        self._client = client
        self._engine = engine
        self._adapter = adapter
        self._start: Message | None = None
        self._error = bytearray()

    @property
    def outcome(self) -> Outcome:
        """How it ended, once the engine's app has returned."""
        if self._is_complete:
            return Outcome.of_status(self._status)
        return Outcome.CLIENT_GONE if self._client.is_gone else Outcome.FAILED

    async def send(self, message: Message) -> None:
        """What the engine's app calls. To a client that has gone nothing is sent, and so nothing is complete."""
        if self._client.is_gone:
            return
        if message["type"] == "http.response.start":
            self._status, self._start = message["status"], message
            return
        is_last = not message.get("more_body", False)
        if self._status >= HTTPStatus.BAD_REQUEST:
            self._error += message.get("body", b"")
            if is_last:
                await self._send_error()
        else:
            await self._send_start()
            await self._send(message)
        self._is_complete = is_last

    async def _send_start(self) -> None:
        start, self._start = self._start, None
        if start is None:
            return
        headers = MutableHeaders(scope=start)
        del headers["x-request-id"]  # the middleware sets ours
        if self._adapter is not None:
            headers[ADAPTER_HEADER] = self._adapter
        await self._send(start)

    async def _send_error(self) -> None:
        if self._engine.health() is Health.DEAD:
            response = error_response(EngineDeadError())
        else:
            body = shaped_error(self._status, bytes(self._error))
            response = JSONResponse(body, self._status, HEADERS.get(self._status))
        await response(self._scope, _no_receive, self._send)


def shaped_error(status: int, body: bytes) -> dict[str, object]:
    """An inner app's error (vLLM's own shape, Anthropic's, FastAPI's `detail`) in ours, with no path in its words.

    What the engine says of its own failures (5xx) stays in the logs.
    """
    inner = _inner_error(body)
    message, param = inner.get("message"), inner.get("param")
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or not isinstance(message, str) or not message:
        message = "The engine failed to answer." if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "Refused."
    default = "engine_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request"
    code = "context_length_exceeded" if "maximum context length" in message else CODES.get(status, default)
    return error_body(status, code, PATH_LIKE.sub("…", message), param if isinstance(param, str) else None)


def _inner_error(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except ValueError:
        return {}
    match parsed:
        case {"error": dict() as error}:
            return error
        case {"detail": str() as detail}:
            return {"message": detail}
        case _:
            return {}


async def _no_receive() -> Message:
    return {"type": "http.disconnect"}
