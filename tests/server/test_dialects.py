"""One refusal, in the words of whose clients read it: OpenAI's everywhere, Anthropic's on `/v1/messages`."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.answer import shaped_error
from server.dialects import ANTHROPIC_TYPES, in_dialect
from server.errors import STATUSES, error_body
from tests.server.world import World

MESSAGES = "/v1/messages"
TYPES = {*ANTHROPIC_TYPES.values(), "invalid_request_error", "api_error"}
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
JSON = {"content-type": "application/json"}
REFUSALS: dict[tuple[int, str, str], dict[str, Any]] = {
    (401, "authentication_error", "invalid_api_key"): {"json": ASKED, "headers": {"authorization": "Bearer lk-no"}},
    (404, "not_found_error", "adapter_not_found"): {"json": {**ASKED, "model": "nothing"}},
    (400, "invalid_request_error", "unsupported_parameter"): {"json": {**ASKED, "cache_salt": "x"}},
    (400, "invalid_request_error", "invalid_json"): {"content": b"{", "headers": JSON},
    (415, "invalid_request_error", "unsupported_media_type"): {"content": b"{}"},
    (405, "invalid_request_error", "method_not_allowed"): {"method": "GET"},
    (413, "invalid_request_error", "request_too_large"): {"content": b" " * (2 << 20)},
}
"""What a refusal looks like, and what it takes to be refused so."""


def send(world: World, path: str, **request: Any) -> httpx.Response:
    with world.client("acme") as client:
        return client.request(request.pop("method", "POST"), path, **request)


@pytest.mark.parametrize("path", [MESSAGES, f"{MESSAGES}/count_tokens"])
@pytest.mark.parametrize(("status", "type_", "code"), REFUSALS, ids=[code for _, _, code in REFUSALS])
def test_every_refusal_of_a_message_is_anthropics_whoever_raised_it(
    world: World, path: str, status: int, type_: str, code: str
) -> None:
    answer = send(world, path, **REFUSALS[status, type_, code])
    said = answer.json()
    error = said["error"]
    assert (answer.status_code, said["type"]) == (status, "error")
    assert (error["type"], error["code"], error["details"]) == (type_, code, {"error_code": code})


def test_what_is_not_there_below_messages_is_said_in_the_same_words(world: World) -> None:
    answer = send(world, f"{MESSAGES}/batches")
    assert (answer.status_code, answer.json()["type"]) == (404, "error")


def test_other_paths_keep_openais_words(world: World) -> None:
    for path in ("/v1/chat/completions", "/v1/messages-of-others"):
        answer = send(world, path, json={"messages": [], "cache_salt": "x"})
        assert set(answer.json()) == {"error"}
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@given(status=st.sampled_from(sorted({*STATUSES.values(), 412, 416, 422, 507})), code=st.text(), message=st.text())
def test_anthropics_clients_know_every_type_and_openais_lose_nothing(status: int, code: str, message: str) -> None:
    ours: Any = error_body(status, code, message)
    theirs = in_dialect(MESSAGES, status, ours)
    assert theirs["error"]["type"] in TYPES
    assert theirs["error"] | {"type": ours["error"]["type"], "details": None} == {**ours["error"], "details": None}
    assert in_dialect("/v1/responses", status, ours) == ours


def test_a_field_that_can_not_be_is_named_without_the_parsers_own_words() -> None:
    message = (
        "2 validation errors:\n  {'type': 'literal_error', 'loc': 'body.response_format.type', "
        "'msg': \"Input should be 'text' or 'json_object'\", 'input': 'nonsense'}\n  {'type': 'missing', 'msg': 'x'}"
    )
    inner = {"error": {"message": message, "param": "body.response_format.type", "code": 400}}
    error: Any = shaped_error(400, json.dumps(inner).encode())["error"]
    assert error["param"] == "response_format.type"
    assert error["message"] == "response_format.type: Input should be 'text' or 'json_object'."
