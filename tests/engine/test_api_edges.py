"""The edges of the API on the real engine: what is not reachable, what is refused, and in which words."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from fastapi import FastAPI

from server.gateway import PATHS
from tests.engine.asking import GREEDY, QUESTION, chat, text_of
from tests.engine.conftest import RealServer

pytestmark = pytest.mark.engine

CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
OURS = {"/v1/models", "/metrics"}
"""Paths of vLLM's at which this server has something of its own."""
ASKED: dict[str, dict[str, Any]] = {
    CHAT: GREEDY,
    COMPLETIONS: {"prompt": "Where is", "temperature": 0, "max_tokens": 8},
    RESPONSES: {"input": "Where is it?", "temperature": 0, "max_output_tokens": 8},
    MESSAGES: GREEDY,
}
OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
NAMED = {"type": "function", "function": {"name": "f"}}


def formed(schema: object) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def with_text(schema: object) -> dict[str, Any]:
    return {"text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}}


def with_tool(parameters: object, choice: object = NAMED) -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    return {"tools": [tool], "tool_choice": choice}


def structured(**fields: object) -> dict[str, Any]:
    return {"structured_outputs": fields}


BAD: list[tuple[str, dict[str, Any]]] = [
    # the form of an answer
    (CHAT, {"response_format": {"type": "nonsense"}}),
    (CHAT, {"response_format": {"type": "json_schema"}}),
    (CHAT, {"response_format": "json"}),
    (CHAT, {"structured_outputs": "x"}),
    (CHAT, {"structured_outputs": []}),
    (CHAT, {"structured_outputs": {}}),
    # schemas that are none, contradict themselves, or never end
    (CHAT, formed("text")),
    (CHAT, formed({"type": "not-a-type"})),
    (CHAT, formed({"type": "object", "properties": []})),
    (CHAT, formed({"type": "string", "minLength": 5, "maxLength": 2})),
    (CHAT, formed({"type": "string", "minLength": -1})),
    (CHAT, formed({"enum": []})),
    (CHAT, formed({"$ref": "#/nowhere"})),
    (CHAT, formed({"$ref": "#"})),
    (CHAT, formed({"type": "string", "pattern": "("})),
    (CHAT, formed({"type": "array", "uniqueItems": True})),
    (CHAT, formed({"type": "array", "minItems": 10**9})),  # 22 GB, with vLLM's own choice of compilers
    (COMPLETIONS, formed({"type": "not-a-type"})),
    (RESPONSES, with_text({"type": "not-a-type"})),
    (RESPONSES, with_text({"type": "string", "pattern": "("})),
    (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": {"type": "not-a-type"}}}}),
    # regular expressions and grammars
    (CHAT, structured(json="")),
    (CHAT, structured(json_object=False)),
    (CHAT, structured(choice=[])),
    (CHAT, structured(regex="(")),
    (CHAT, structured(regex=r"(a)\1")),
    (CHAT, structured(grammar="nonsense")),
    (CHAT, structured(grammar="root ::= root")),
    (CHAT, structured(structural_tag="{}")),
    (CHAT, structured(regex="a", choice=["b"])),
    # tools
    (CHAT, with_tool({"type": "not-a-type"})),
    (CHAT, with_tool({"type": "not-a-type"}, "required")),
    (CHAT, with_tool({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}})),
    (CHAT, with_tool(OBJECT, {"type": "function", "function": {"name": "g"}})),
    (CHAT, with_tool(OBJECT, "sometimes")),
    (CHAT, {"tools": [{}], "tool_choice": "required"}),
    (CHAT, {"tool_choice": "required"}),
    (CHAT, {"chat_template": "{{ 1 }}"}),
    (MESSAGES, {"tools": [{"name": "f", "input_schema": {"type": "x"}}], "tool_choice": {"type": "tool", "name": "f"}}),
    (MESSAGES, {"tools": [{"name": "f", "input_schema": OBJECT}], "tool_choice": {"type": "tool", "name": "g"}}),
    # how it is sampled
    (CHAT, {"logit_bias": {"999999": 1}}),
    (CHAT, {"logprobs": True, "top_logprobs": 10**6}),
    (CHAT, {"stop": [""]}),
    (CHAT, {"seed": 2**64}),
    (CHAT, {"max_tokens": 10**6}),
    (CHAT, {"messages": []}),
    (COMPLETIONS, {"prompt": [99999999]}),
    (RESPONSES, {"include": ["message.output_text.logprobs"], "top_logprobs": 25}),
]


@pytest.fixture
def client(server: RealServer) -> Iterator[httpx.Client]:
    with server.client(server.acme) as client:
        yield client


def test_nothing_else_of_the_engines_app_is_reachable(server: RealServer, client: httpx.Client) -> None:
    inner = server.engine.asgi
    assert isinstance(inner, FastAPI)
    paths = {getattr(route, "path", "") for route in inner.routes}
    assert {"/tokenize", "/inference/v1/generate", "/v1/responses/{response_id}", *PATHS - {"/v1/embeddings"}} <= paths
    for path in sorted(paths - OURS):
        for method in METHODS:
            if (method, path in PATHS) == ("POST", True):
                continue
            answer = client.request(method, path.replace("{response_id}", "resp_1"))
            assert answer.status_code == (405 if path in PATHS else 404), f"{method} {path}"
            if method != "HEAD":
                assert answer.json()["error"]["code"] == ("method_not_allowed" if path in PATHS else "not_found")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_the_engine_can_not_do_is_refused_in_words_and_harms_nobody(
    server: RealServer, client: httpx.Client, *, stream: bool
) -> None:
    golden = text_of(chat(server, server.acme, adapter="support"))
    for path, fields in BAD:
        answer = client.post(path, json={**ASKED[path], **fields, "adapter": "support", "stream": stream})
        case = f"{path} {json.dumps(fields)[:200]}: {answer.text[:300]}"
        assert answer.status_code == 400, case
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error", case
        assert len(error["message"]) > 10, case
    assert text_of(chat(server, server.acme, adapter="support")) == golden


def test_anthropics_client_reads_every_refusal_as_its_own(server: RealServer) -> None:
    asked: dict[str, Any] = {"model": "support", "messages": QUESTION, "max_tokens": 4}
    cases: list[tuple[str, dict[str, Any], type[anthropic.APIStatusError], str, str]] = [
        ("lk-nobody", {}, anthropic.AuthenticationError, "authentication_error", "invalid_api_key"),
        (server.acme, {"model": "nothing"}, anthropic.NotFoundError, "not_found_error", "adapter_not_found"),
        (server.acme, {"max_tokens": 0}, anthropic.BadRequestError, "invalid_request_error", "invalid_request"),
        (server.acme, {"max_tokens": 5000}, anthropic.BadRequestError, "invalid_request_error", "invalid_request"),
    ]
    for key, fields, kind, type_, code in cases:
        client = anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0)
        with client, pytest.raises(kind) as refusal:
            client.messages.create(**asked | fields)
        assert isinstance(refusal.value.body, dict)
        assert refusal.value.body["type"] == "error"
        assert (refusal.value.type, refusal.value.error_code) == (type_, code)
        assert refusal.value.api_message
