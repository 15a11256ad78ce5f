"""One table from errors to answers, complete, in one shape."""

import asyncio
import inspect
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import Message

import adapters
import server.engine.environment
import server.errors
from adapters import ConflictError, ForbiddenError, LorikeetError, RefusedError, StorageError
from adapters.errors import Problem
from server.answer import Answer, shaped_error
from server.client import Client
from server.engine.fake import FakeEngine
from server.engine.protocol import EngineError
from server.errors import (
    ENGINE_SENTENCES,
    STATUSES,
    STATUSES_BY_CODE,
    error_answer,
    error_response,
    status_of,
)
from server.metering import Outcome
from tests.server.world import World


def tree(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for kind in root.__subclasses__():
        yield from tree(kind)


def test_the_table_has_every_error_of_the_registry_the_server_and_the_engine() -> None:
    rooms = ("adapters.", "server.")
    kinds = {kind for root in (LorikeetError, EngineError) for kind in tree(root) if kind.__module__.startswith(rooms)}
    assert kinds == set(STATUSES)
    assert set(tree(EngineError)) == set(ENGINE_SENTENCES)


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = inspect.getdoc(server.errors) or ""
    for kind in tree(server.errors.ServerError):
        assert kind.__name__ in drawn
    assert adapters.RegistryError.__name__ in drawn


@pytest.mark.parametrize("kind", STATUSES)
def test_every_error_answers_in_the_one_shape(kind: type[Exception]) -> None:
    response = error_response(kind("words"))
    assert response.status_code == STATUSES[kind]
    assert (response.status_code in {429, 503}) == ("retry-after" in response.headers)
    assert (response.status_code == 401) == ("www-authenticate" in response.headers)


def test_what_nobody_foresaw_is_a_500_that_says_nothing() -> None:
    response = error_response(ZeroDivisionError("/secret/path"))
    assert response.status_code == 500
    assert b"secret" not in response.body
    assert b"internal_error" in response.body


def test_a_refused_upload_tells_of_all_its_problems() -> None:
    problems = [Problem("invalid_rank", "'r' must be …"), Problem("not_finite", "'x' has …")]
    status, body = error_answer(RefusedError("Both.", code="invalid_rank", problems=problems))
    assert (status, body["error"]) == (
        422,
        {
            "message": "Both.",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_rank",
            "problems": [
                {"code": "invalid_rank", "message": "'r' must be …"},
                {"code": "not_finite", "message": "'x' has …"},
            ],
        },
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConflictError("moved", code="version_conflict"), 412),
        (ConflictError("other words", code="idempotency_key_reuse"), 422),
        (ConflictError("gone", code="blob_collected"), 409),
        (StorageError("no room", code="insufficient_storage"), 507),
        (StorageError("no disk"), 503),
        (ForbiddenError("too many", code="quota_exceeded"), 403),
    ],
)
def test_some_codes_have_a_status_of_their_own(error: LorikeetError, status: int) -> None:
    response = error_response(error)
    assert (status_of(error), response.status_code) == (status, status)
    assert json.loads(bytes(response.body))["error"]["code"] == error.code


def test_every_code_with_a_status_of_its_own_is_one_that_the_registry_has() -> None:
    source = "".join(path.read_text() for path in Path(adapters.__file__).parent.rglob("*.py"))
    for code in STATUSES_BY_CODE:
        assert f'"{code}"' in source


@pytest.mark.parametrize(
    ("status", "body", "message", "code"),
    [
        (
            400,
            b'{"error":{"message":"bad n","type":"BadRequestError","param":"n","code":400}}',
            "bad n",
            "invalid_request",
        ),
        (400, b'{"type":"error","error":{"type":"x","message":"no"}}', "no", "invalid_request"),
        (404, b'{"detail":"Not Found"}', "Not Found", "not_found"),
        (422, b'{"detail":[{"loc":["body"]}]}', "Refused.", "invalid_request"),
        (400, b"<html>", "Refused.", "invalid_request"),
        (400, b'{"error":{"message":"see /var/lib/x/y.json and /v1"}}', "see … and …", "invalid_request"),
        (500, b'{"error":{"message":"Traceback /opt/x"}}', "The engine failed to answer.", "engine_error"),
    ],
)
def test_the_inner_apps_errors_are_put_into_our_shape(status: int, body: bytes, message: str, code: str) -> None:
    error = shaped_error(status, body)["error"]
    assert isinstance(error, dict)
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["message"], error["code"]) == (message, code)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("no /etc/passwd", "no …"),
        ("no /root", "no …"),
        ("no file:///srv/models/x.bin here", "no … here"),
        ("no C:\\models\\x", "no …"),
        ("see https://docs.vllm.ai/en/x and and/or", "see https://docs.vllm.ai/en/x and and/or"),
        ("stopped at </s> or </tool_call>", "stopped at </s> or </tool_call>"),
    ],
)
def test_no_path_of_the_servers_is_shown(words: str, shown: str) -> None:
    error = shaped_error(400, json.dumps({"error": {"message": words}}).encode())["error"]
    assert isinstance(error, dict)
    assert error["message"] == shown


def relayed(*chunks: bytes, path: str = "/v1/chat/completions") -> tuple[bytes, Outcome]:
    """A stream of the engine's app as the client gets it, and how it counts."""
    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    async def relay() -> Outcome:
        engine = FakeEngine()
        await engine.start()
        answer = Answer({"type": "http", "path": path}, send, Client(never), engine, adapter=None)
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await answer.send({"type": "http.response.start", "status": 200, "headers": headers})
        for chunk in (*chunks, b""):
            await answer.send({"type": "http.response.body", "body": chunk, "more_body": bool(chunk)})
        return answer.outcome

    outcome = asyncio.run(relay())
    return b"".join(sent), outcome


async def never() -> Message:
    return {"type": "http.disconnect"}


def test_an_error_inside_a_stream_is_put_into_our_shape_and_counts_as_failed() -> None:
    inner = b'{"error": {"message": "bad /opt/model/x", "type": "BadRequestError", "param": null, "code": 400}}'
    body, outcome = relayed(b'data: {"choices":[]}\n\n', b"data: " + inner + b"\n\n", b"data: [DONE]\n\n")
    first, second, last = body.decode().strip().split("\n\n")
    assert (first, last) == ('data: {"choices":[]}', "data: [DONE]")
    assert json.loads(second.removeprefix("data: ")) == {
        "error": {"message": "bad …", "type": "invalid_request_error", "param": None, "code": "invalid_request"}
    }
    assert outcome is Outcome.FAILED


def test_anthropics_clients_find_the_error_inside_a_stream_too() -> None:
    inner = b'{"type":"error","error":{"type":"internal_error","message":"at /opt/model/x"}}'
    start = b'event: message_start\ndata: {"type":"message_start"}\n\n'
    body, outcome = relayed(start, b"event: error\ndata: " + inner + b"\n\n", path="/v1/messages")
    kind, event = body.removeprefix(start).decode().strip().split("\n")
    shaped = json.loads(event.removeprefix("data: "))
    assert (kind, shaped["type"], shaped["error"]["code"]) == ("event: error", "error", "engine_error")
    assert "/opt" not in event
    assert outcome is Outcome.FAILED


@pytest.mark.parametrize(("code", "outcome"), [(400, Outcome.REFUSED), (500, Outcome.FAILED)])
def test_a_stream_that_begins_with_an_error_is_an_answer_like_any_other(code: int, outcome: Outcome) -> None:
    inner = json.dumps({"error": {"message": "no such token", "param": None, "code": code}}).encode()
    body, seen = relayed(b"data: " + inner + b"\n\n", b"data: [DONE]\n\n")
    assert json.loads(body)["error"]["code"] == ("invalid_request" if code == 400 else "engine_error")
    assert seen is outcome


def test_a_text_about_errors_passes_through_a_stream_as_it_is() -> None:
    text = json.dumps({"choices": [{"delta": {"content": 'data: {"error": {"message": "/opt"}}'}}], "error": None})
    body, outcome = relayed(f"data: {text}\n\n".encode())
    assert body == f"data: {text}\n\n".encode()
    assert outcome is Outcome.OK


def test_a_defect_is_a_500_in_the_one_shape_wherever_it_sits(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr(world.registry.adapters, "list", fail)
    monkeypatch.setattr(world.registry, "resolve", fail)
    with world.client() as client:
        answers = [client.get("/v1/models"), world.ask("support")]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert "secret" not in answer.text
        assert answer.headers["x-request-id"]
    assert [record.name for record in caplog.records if record.exc_info] == ["server.middleware"] * 2
