"""The engine's answer on its way to the client: our headers on it, and its errors in our shape.

The start is held back until the first bytes come, for a status line can't be taken back. What fails after it is an
event in the stream.
"""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import Message, Scope, Send

from server.client import Client
from server.engine.protocol import Engine, EngineDeadError, Health
from server.errors import HEADERS, error_answer, error_body
from server.metering import Outcome

ADAPTER_HEADER = "x-lorikeet-adapter"
WARNING_HEADER = "x-lorikeet-warning"
"""What is not as it was when the adapter was trained: `base_quantised`."""
PATH_LIKE = re.compile(r"\bfile:/\S*|(?<![\w.:/<])(?:/[\w.@+-]+)+/?|\b[A-Za-z]:\\\S+")
"""Any absolute path. Not the rest of a web address, nor a closing tag such as a stop string's."""
EVENT_STREAM = "text/event-stream"
ERROR_KEY = b'"error"'
ANTHROPIC_KIND = b'"type":"error"'
"""What Anthropic's clients look for beside the error itself."""
CODES = {400: "invalid_request", 404: "not_found", 413: "request_too_large", 422: "invalid_request", 501: "unsupported"}
"""status of the engine's app → our code for it."""


class Answer:
    """Wraps the `send` of one request."""

    def __init__(
        self,
        scope: Scope,
        send: Send,
        client: Client,
        engine: Engine,
        *,
        adapter: str | None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._status = 0
        self._is_complete = False
        self._scope = scope
        self._send = send
        self._client = client
        self._engine = engine
        self._headers = {**(headers or {})} | ({ADAPTER_HEADER: adapter} if adapter is not None else {})
        self._start: Message | None = None
        self._error = bytearray()
        self._is_stream = False
        self._has_failed = False

    @property
    def outcome(self) -> Outcome:
        """How it ended, once the engine's app has returned."""
        if self._is_complete:
            return Outcome.FAILED if self._has_failed else Outcome.of_status(self._status)
        return Outcome.CLIENT_GONE if self._client.is_gone else Outcome.FAILED

    async def send(self, message: Message) -> None:
        """What the engine's app calls. To a client that has gone nothing is sent, and so nothing is complete."""
        if self._client.is_gone:
            return
        if message["type"] == "http.response.start":
            self._status, self._start = message["status"], message
            self._is_stream = Headers(raw=message["headers"]).get("content-type", "").startswith(EVENT_STREAM)
            return
        is_last = not message.get("more_body", False)
        if self._status >= HTTPStatus.BAD_REQUEST:
            self._error += message.get("body", b"")
            if is_last:
                await self._send_error()
        else:
            await self._send_start()
            await self._send(self._shaped(message) if self._is_stream else message)
        self._is_complete = is_last

    async def _send_start(self) -> None:
        start, self._start = self._start, None
        if start is None:
            return
        headers = MutableHeaders(scope=start)
        del headers["x-request-id"]  # the middleware sets ours
        headers.update(self._headers)
        await self._send(start)

    def _shaped(self, message: Message) -> Message:
        body = message.get("body", b"")
        if ERROR_KEY not in body:  # inside a generated text its quotes would be escaped
            return message
        return {**message, "body": b"\n".join(map(self._shaped_line, body.split(b"\n")))}

    def _shaped_line(self, line: bytes) -> bytes:
        field, _, value = line.partition(b":")
        inner = _inner_error(value) if field == b"data" else {}
        if not inner:
            return line
        self._has_failed = True
        code: object = inner.get("code")
        status = code if isinstance(code, int) and code in range(400, 600) else HTTPStatus.INTERNAL_SERVER_ERROR
        _, body = self._error_answer(status, value)
        kind = {"type": "error"} if ANTHROPIC_KIND in value else {}
        return b"data: " + json.dumps(kind | body).encode()

    async def _send_error(self) -> None:
        status, body = self._error_answer(self._status, bytes(self._error))
        await JSONResponse(body, status, HEADERS.get(status))(self._scope, _no_receive, self._send)

    def _error_answer(self, status: int, inner: bytes) -> tuple[int, dict[str, object]]:
        if self._engine.health() is Health.DEAD:
            return error_answer(EngineDeadError())
        return status, shaped_error(status, inner)


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
