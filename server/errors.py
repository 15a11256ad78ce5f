"""What the server refuses, and the one table that turns every error into a status and OpenAI's error shape.

    LorikeetError
    ├── RegistryError               the registry's (adapters/errors.py)
    ├── EnginePackageError          vLLM can't be started here (server/engine/environment.py)
    └── ServerError                 the server's own; may name the request's field in `param`
        ├── BadRequestError         the request can't be understood or asks for what is not a client's to set
        ├── RouteNotFoundError      there is nothing at this path
        ├── MethodNotAllowedError   … or not with this method
        ├── BodyTooLargeError       more bytes than this route takes
        ├── BodyTimeoutError        the body did not come in time
        ├── MediaTypeError          not JSON, or encoded
        ├── UploadInProgressError   this tenant's last upload, or as many as there may be, are still coming in
        ├── RateLimitedError        this tenant has used what it may, for now
        ├── OverloadedError         all tenants together ask for more than there is
        ├── AdapterLoadingError     the adapter found no room, or was not loaded, in time
        ├── NotReadyError           the engine is not up yet, or no more
        ├── DrainingError           the server is stopping
        └── SettingsError           the server can't start like this
    EngineError                     the engine's (server/engine/protocol.py)

Anything else is a defect: it is logged, and the client reads a fixed sentence.
"""

from collections.abc import Mapping
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from adapters import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    KeyRejectedError,
    LorikeetError,
    NotFoundError,
    RefusedError,
    RegistryError,
    StorageError,
    TooLargeError,
)
from server.dialects import in_dialect
from server.engine.environment import EnginePackageError
from server.engine.protocol import AdapterRejectedError, EngineDeadError, EngineError


class ServerError(LorikeetError):
    """The root of the server's own refusals."""

    code = "server_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.param = param
        self.headers = headers or {}


class BadRequestError(ServerError):
    """The request can't be understood, or asks for what is not a client's to set."""

    code = "invalid_request"


class RouteNotFoundError(ServerError):
    """There is nothing at this path."""

    code = "not_found"


class MethodNotAllowedError(ServerError):
    """There is something at this path, but not for this method."""

    code = "method_not_allowed"


class BodyTooLargeError(ServerError):
    """More bytes than this route takes."""

    code = "request_too_large"


class BodyTimeoutError(ServerError):
    """The body did not come in time: it would keep its tenant's place for good."""

    code = "request_timeout"


class MediaTypeError(ServerError):
    """The body is not JSON, or is compressed."""

    code = "unsupported_media_type"


class UploadInProgressError(ServerError):
    """This tenant's last upload, or as many as there may be at once, are still coming in."""

    code = "upload_in_progress"


class RateLimitedError(ServerError):
    """This tenant has used what it may, for now: `headers` say how much that is, and when to come back."""

    code = "rate_limit_exceeded"


class OverloadedError(ServerError):
    """All tenants together ask for more than there is: `headers` say when to come back."""

    code = "server_overloaded"


class AdapterLoadingError(ServerError):
    """The adapter found no room, or was not loaded, in the time a request waits."""

    code = "adapter_loading"


class NotReadyError(ServerError):
    """The engine is not up yet, or no more."""

    code = "engine_unavailable"


class DrainingError(ServerError):
    """The server is stopping: nothing new begins."""

    code = "server_draining"


class SettingsError(ServerError):
    """The server can't start like this."""

    code = "invalid_settings"


STATUSES: Mapping[type[Exception], int] = {
    LorikeetError: 500,
    RegistryError: 500,
    NotFoundError: 404,
    ForbiddenError: 403,
    KeyRejectedError: 401,
    InvalidError: 400,
    ConflictError: 409,
    RefusedError: 422,
    TooLargeError: 413,
    StorageError: 503,
    ServerError: 500,
    BadRequestError: 400,
    RouteNotFoundError: 404,
    MethodNotAllowedError: 405,
    BodyTooLargeError: 413,
    BodyTimeoutError: 408,
    MediaTypeError: 415,
    UploadInProgressError: 429,
    RateLimitedError: 429,
    OverloadedError: 503,
    AdapterLoadingError: 503,
    NotReadyError: 503,
    DrainingError: 503,
    SettingsError: 500,
    EnginePackageError: 500,
    EngineError: 503,
    AdapterRejectedError: 503,
    EngineDeadError: 503,
}
"""error → HTTP status. Complete: a test walks the trees."""

STATUSES_BY_CODE: Mapping[str, int] = {
    "version_conflict": 412,  # a failed `If-Match`; other conflicts are 409
    "idempotency_key_reuse": 422,
    "offset_mismatch": 416,
    "upload_damaged": 410,  # what came is lost: it has to be begun anew, and not in two seconds
    "insufficient_storage": 507,  # not before somebody makes room: nothing to come back for in two seconds
}
"""Where one error means two things over HTTP."""

QUERY_CODES: Mapping[str, str] = {"limit": "invalid_limit", "after": "invalid_cursor", "before": "invalid_cursor"}
"""field of a query → the code, where it is not `invalid_request`: the registry's own, for what it never gets to see."""

ENGINE_SENTENCES: Mapping[type[EngineError], tuple[str, str]] = {
    EngineError: ("engine_unavailable", "The engine failed to answer."),
    AdapterRejectedError: ("adapter_unavailable", "This adapter can't be loaded at the moment."),
    EngineDeadError: ("engine_unavailable", "The engine is restarting."),
}
"""The engine's own words may hold paths, so clients read these."""

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
"""status → OpenAI's `type`, where it is not `invalid_request_error` (4xx) or `server_error` (5xx)."""

HEADERS: Mapping[int, Mapping[str, str]] = {
    401: {"www-authenticate": "Bearer"},
    408: {"connection": "close"},  # the rest of the body is not read
    413: {"connection": "close"},  # nor here
    429: {"retry-after": "5"},
    503: {"retry-after": "2"},
}
"""status → the headers that every answer with it carries."""


def status_of(error: Exception) -> int:
    """The HTTP status of any exception: 500 for those the table does not know."""
    if isinstance(error, LorikeetError) and error.code in STATUSES_BY_CODE:
        return STATUSES_BY_CODE[error.code]
    return next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)


def error_response(error: Exception, path: str = "") -> JSONResponse:
    """The whole answer for any exception, as the clients of this path read it."""
    status, body = error_answer(error)
    body = in_dialect(path, status, body)
    own = error.headers if isinstance(error, ServerError) else {}
    return JSONResponse(body, status, {**HEADERS.get(status, {}), **own})


def error_answer(error: Exception) -> tuple[int, dict[str, object]]:
    """The status and, in OpenAI's shape, the body for any exception; a refused upload's has all `problems` besides."""
    status = status_of(error)
    match error:
        case LorikeetError():
            code, message, param = error.code, error.message, getattr(error, "param", None)
        case EngineError():
            code, message = next(ENGINE_SENTENCES[kind] for kind in type(error).__mro__ if kind in ENGINE_SENTENCES)
            param = None
        case _:
            code, message, param = "internal_error", "Something went wrong inside the server.", None
    if isinstance(error, RefusedError):
        problems = [{"code": problem.code, "message": problem.message} for problem in error.problems]
        return status, error_body(status, code, message, param, problems=problems)
    return status, error_body(status, code, message, param)


def error_body(status: int, code: str, message: str, param: str | None = None, **more: object) -> dict[str, object]:
    """`{"error": {"message", "type", "param", "code"}}`, and in it what there is `more` to say."""
    default = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return {"error": {"message": message, "type": TYPES.get(status, default), "param": param, "code": code, **more}}


def from_framework(error: Exception) -> Exception:
    """What FastAPI and Starlette raise by themselves, as errors of ours."""
    match error:
        case RequestValidationError():
            return _from_validation(error)
        case HTTPException(status_code=HTTPStatus.NOT_FOUND):
            return RouteNotFoundError("There is nothing at this path.")
        case HTTPException(status_code=HTTPStatus.METHOD_NOT_ALLOWED):
            return MethodNotAllowedError("This path does not take this method.")
        # FastAPI wraps whatever `receive()` raises while it reads a body, and so our own refusals too.
        case HTTPException(__cause__=LorikeetError() as cause):
            return cause
        case HTTPException(status_code=status, detail=detail) if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return BadRequestError(detail)
        case _:
            return error


def _from_validation(error: RequestValidationError) -> BadRequestError:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return BadRequestError("The body is not JSON.", code="invalid_json")
    source, *path = map(str, first["loc"])
    place = ".".join(path)
    message = f"{place or 'The body'}: {first['msg'].removeprefix('Value error, ')}."
    return BadRequestError(message, code=QUERY_CODES.get(place) if source == "query" else None, param=place or None)
