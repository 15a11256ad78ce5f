"""The engine's answer on its way to the client: our headers on it, and its errors in our shape.

The start is held back until the first bytes come, for a status line can't be taken back: a stream that begins with an
error becomes an answer with that status. What fails after it is an event in the stream.
"""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from anyio import move_on_after
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import Message, Scope, Send

from server.client import Client
from server.dialects import in_dialect
from server.engine.protocol import Engine, EngineDeadError, Health
from server.errors import HEADERS, error_answer, error_body
from server.metering import Outcome

ADAPTER_HEADER = "x-lorikeet-adapter"
IGNORED_HEADER = "x-lorikeet-ignored"
"""The fields of a request that its route does not know, and that went no further."""
WARNING_HEADER = "x-lorikeet-warning"
"""What is not as it was when the adapter was trained: `base_quantised`."""
PATH_LIKE = re.compile(r"\bfile:/\S*|(?<![\w.:/<])(?:/[\w.@+-]+)+/?|\b[A-Za-z]:\\\S+")
"""Any absolute path. Not the rest of a web address, nor a closing tag such as a stop string's."""
EVENT_STREAM = "text/event-stream"
TYPED_STREAMS = frozenset({"/v1/messages", "/v1/responses"})
"""Where each event says its type, and no [DONE] is the last."""
FAIL_SECONDS = 2.0
"""For the last event of an answer that is given up: a client that does not read can't hold up the end."""
ERROR_KEY = b'"error"'
VALIDATION = re.compile(r"\A\d+ validation errors?:.*?'msg': (?P<quote>['\"])(?P<said>.+?)(?P=quote)[,}]", re.DOTALL)
"""FastAPI's errors as vLLM writes them: Python's dicts, with what was sent in them."""
XGRAMMAR_PLACE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")
"""The time, and the line of C++, that xgrammar puts into its words."""
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
        self._error_headers = {**(headers or {})}
        self._headers = self._error_headers | ({ADAPTER_HEADER: adapter} if adapter is not None else {})
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
        if self._is_stream and self._start is not None:
            self._look_at_first(message.get("body", b""))
        if self._status >= HTTPStatus.BAD_REQUEST:
            if not self._is_stream:
                self._error += message.get("body", b"")
            if is_last:
                await self._send_error()
        else:
            await self._send_start()
            await self._send(self._shaped(message) if self._is_stream else message)
        self._is_complete = is_last

    def _look_at_first(self, body: bytes) -> None:
        """Nothing has been sent yet: if all that there will be is an error, that is what is sent."""
        values = (line.removeprefix(b"data:") for line in body.split(b"\n") if line.startswith(b"data:"))
        first = next(values, b"")
        if ERROR_KEY in first and (inner := _inner_error(first)):
            self._status = _status_in(inner)
            self._error += first

    async def fail(self, error: Exception) -> None:
        """End the answer before its time: with an event if a stream has begun; else, `error` is raised."""
        if self._is_complete or self._client.is_gone:
            return
        has_begun = self._status and self._start is None
        if not (self._is_stream and has_begun):
            raise error
        self._has_failed = True
        with move_on_after(FAIL_SECONDS):
            await self._send({"type": "http.response.body", "body": self._last_event(error), "more_body": False})
            self._is_complete = True

    def _last_event(self, error: Exception) -> bytes:
        event = b"data: " + self._error_event(*error_answer(error)) + b"\n\n"
        is_typed = self._scope["path"] in TYPED_STREAMS
        return b"event: error\n" + event if is_typed else event + b"data: [DONE]\n\n"

    def _error_event(self, status: int, body: dict[str, object]) -> bytes:
        path = self._scope["path"]
        kind = {"type": "error"} if path in TYPED_STREAMS else {}
        return json.dumps(kind | in_dialect(path, status, body)).encode()

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
        return b"data: " + self._error_event(*self._error_answer(_status_in(inner), value))

    async def _send_error(self) -> None:
        status, body = self._error_answer(self._status, bytes(self._error))
        body = in_dialect(self._scope["path"], status, body)
        headers = {**HEADERS.get(status, {}), **self._error_headers}
        await JSONResponse(body, status, headers)(self._scope, _no_receive, self._send)

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
    param = param.removeprefix("body.") if isinstance(param, str) else None
    if validation := VALIDATION.match(message):
        message = f"{param or 'The body'}: {validation['said']}."
    return error_body(status, code, PATH_LIKE.sub("…", XGRAMMAR_PLACE.sub("", message)), param)


def _status_in(inner: Mapping[str, object]) -> int:
    """Of an error in a stream: vLLM writes it as its code."""
    code = inner.get("code")
    return code if isinstance(code, int) and code in range(400, 600) else HTTPStatus.INTERNAL_SERVER_ERROR


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
