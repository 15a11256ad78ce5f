"""What wraps every request: an id, a cap on the body, and an answer for whatever was raised.

Plain ASGI, since BaseHTTPMiddleware hides hang-ups and gathers streams. Knows no route but those that upload.
"""

import logging
import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BadRequestError, BodyTooLargeError, error_response, status_of

UPLOAD_PATH = re.compile(r"/admin/v1/tenants/[^/]+/adapters/[^/]+/versions")
PART_PATH = re.compile(r"/admin/v1/tenants/[^/]+/uploads/[^/]+/files/[^/]+")

log = logging.getLogger(__name__)


class RequestId:
    """`x-request-id` on every answer. Ours, never the client's: it ends up in logs and in the engine."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the header added."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = f"req-{uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        return await self._app(scope, receive, send_with_id)


class Guard:
    """The edge: what was raised becomes an answer if none has begun, and a log line if it is not a refusal."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, whatever happens. What breaks an answer midway is raised on: uvicorn then cuts the connection.

        A client that hung up while its body was read gets no answer and is no failure.
        """
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        has_started = has_finished = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_started, has_finished
            has_started = True
            has_finished = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except ClientDisconnect:
            log.info("client gone", extra={"request_id": scope["state"]["request_id"]})
        except Exception as error:
            status = status_of(error)
            if status == 500:  # noqa: PLR2004  — a defect, or nothing we have a name for
                log.exception("request failed", extra={"request_id": scope["state"]["request_id"]})
            if not has_started:
                await error_response(error, scope["path"])(scope, receive, send)
            elif not has_finished:
                raise


class BodyCap:
    """Refuses a body as soon as it is known to be too large: by its stated length, or while it streams in."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, max_upload_bytes: int, max_part_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_upload_bytes = max_upload_bytes
        self._max_part_bytes = max_part_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer.

        Raises:
            BodyTooLargeError: here, or out of `receive` in whoever reads the body.
        """
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        cap = self._cap(scope["path"])
        _check(_stated_length(scope), cap)
        received_bytes = 0

        async def receive_capped() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            _check(received_bytes, cap)
            return message

        return await self._app(scope, receive_capped, send)

    def _cap(self, path: str) -> int:
        if UPLOAD_PATH.fullmatch(path):
            return self._max_upload_bytes
        return self._max_part_bytes if PART_PATH.fullmatch(path) else self._max_body_bytes


def _stated_length(scope: Scope) -> int:
    stated = Headers(scope=scope).get("content-length", "0")
    if not (stated.isascii() and stated.isdigit()):
        raise BadRequestError("content-length must be a number.")
    return int(stated[:20])


def _check(size_bytes: int, cap: int) -> None:
    if size_bytes > cap:
        raise BodyTooLargeError(f"The body is larger than the {cap} bytes that this path takes.")
