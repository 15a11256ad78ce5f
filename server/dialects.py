"""Errors in the words of the API that a path belongs to: OpenAI's, as all are made, or Anthropic's.

Anthropic's clients look for `"type": "error"` beside the error, for its `type` among their own, and for the code in
`details`. All else stays where OpenAI's clients look for it.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

ANTHROPIC_PREFIX = "/v1/messages"
ANTHROPIC_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""status → Anthropic's `type`, where it is not `invalid_request_error` (4xx) or `api_error` (5xx)."""


def in_dialect(path: str, status: int, body: Mapping[str, Any]) -> dict[str, Any]:
    """An error's body, made as `error_body` makes it, for the clients of this path."""
    if path != ANTHROPIC_PREFIX and not path.startswith(f"{ANTHROPIC_PREFIX}/"):
        return dict(body)
    default = "api_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    error = body["error"]
    said = {"type": ANTHROPIC_TYPES.get(status, default), "details": {"error_code": error["code"]}}
    return {"type": "error", **body, "error": {**error, **said}}
