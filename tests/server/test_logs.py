"""One line an event, which nobody can forge, and that says nothing of what was asked and answered."""

import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from logging.config import dictConfig
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import logs
from server.errors import BadRequestError
from server.logs import LogFormat, chosen_format, logging_to, note
from tests.server.world import World, wait_until

SECRET = "mark-of-a-secret"
log = logging.getLogger("server.test")


class Lines(io.StringIO):
    """What was written, line by line."""

    def lines(self) -> list[str]:
        return self.getvalue().splitlines()

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]

    def requests(self) -> list[dict[str, Any]]:
        return [record for record in self.records() if record["logger"] == "server.access"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def database() -> str:
    """Nothing here depends on it."""
    return "sqlite"


@pytest.fixture
def written() -> Iterator[Lines]:
    """What the server logs during the test, as JSON."""
    stream = Lines()
    with logging_to(stream, "json", "debug"):
        yield stream


def told(log_format: LogFormat, tell: Callable[[], object]) -> Lines:
    stream = Lines()
    with logging_to(stream, log_format, "debug"):
        tell()
    return stream


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause  # noqa: TRY301
    except Exception as caught:  # noqa: BLE001  — to have its place
        return caught


# --- a line a request


def test_a_request_is_one_line_that_says_whose_it_was_and_what_it_used(written: Lines, world: World) -> None:
    world.publish("acme", "support", seed=1)
    answer = world.ask("support", max_tokens=3)
    wait_until(lambda: bool(written.requests()))
    (line,) = written.requests()
    known = ("level", "message", "method", "path", "status", "tenant", "adapter", "outcome")
    assert [line[name] for name in known] == [
        "INFO",
        "request",
        "POST",
        "/v1/chat/completions",
        200,
        "acme",
        "support@1",
        "ok",
    ]
    assert (line["prompt_tokens"], line["completion_tokens"]) == (2, 3)
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["duration_ms"] > 0
    assert line["time"].endswith("+00:00")


def test_a_refusal_is_a_line_too(written: Lines, world: World) -> None:
    world.ask("nothing")
    with world.client(None) as client:
        client.get("/v1/models")
    wait_until(lambda: len(written.requests()) == 2)
    assert [(line["status"], line.get("outcome")) for line in written.requests()] == [(404, "refused"), (401, None)]


def test_health_checks_are_not_logged(written: Lines, world: World) -> None:
    with world.client(None) as client:
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        assert client.get("/nothing").status_code in {401, 404}
    wait_until(lambda: bool(written.requests()))
    assert [line["path"] for line in written.requests()] == ["/nothing"]


def test_a_stream_that_was_left_is_a_line_when_it_has_ended(written: Lines, world: World) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 500}
    with world.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_lines())
    wait_until(lambda: bool(written.requests()))
    assert written.requests()[0]["outcome"] == "client_gone"


def test_what_is_logged_during_a_request_carries_its_id(written: Lines, world: World) -> None:
    world.publish("acme", "support", seed=1)
    world.engine.refuses_loads = True
    answer = world.ask("support")
    wait_until(lambda: bool(written.requests()))
    (line,) = (record for record in written.records() if record["message"] == "adapter not loaded")
    assert (line["request_id"], line["tenant"]) == (answer.headers["x-request-id"], "acme")


def test_no_line_holds_what_was_asked_answered_or_sent_along(
    written: Lines, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish("acme", "support", seed=1)
    answers = [world.ask("support", prompt=SECRET), world.ask("support", prompt=SECRET, user=SECRET, unknown=SECRET)]
    headers = {
        "content-type": "application/json",
        "user-agent": SECRET,
        "x-request-id": SECRET,
        "cookie": SECRET,
        "traceparent": SECRET,
    }
    bad = [
        ({"authorization": f"Bearer {SECRET}"}, "/v1/chat/completions", b"{}"),
        ({"x-api-key": SECRET}, f"/v1/models?key={SECRET}", b""),
        ({}, "/v1/chat/completions", f'{{"messages": "{SECRET}'.encode()),
        ({}, "/v1/chat/completions", json.dumps({"messages": [], "priority": SECRET}).encode()),
        ({}, f"/admin/v1/tenants?after={SECRET}", b""),
    ]
    with world.client() as client:
        for own, path, body in bad:
            client.post(path, content=body, headers=headers | own)
        # A defect of ours, whose words quote what it worked on.
        monkeypatch.setattr(
            "server.asked.Asked.parse", lambda body, **_: (_ for _ in ()).throw(ValueError(f"can't read {body}"))
        )
        assert client.post("/v1/chat/completions", content=SECRET.encode(), headers=headers).status_code == 500
    wait_until(lambda: len(written.requests()) == len(answers) + len(bad) + 1)
    page = written.getvalue()
    words = {word for answer in answers for word in answer.json()["choices"][0]["message"]["content"].split()}
    assert not [mark for mark in {SECRET, *words, *world.keys.values()} if mark in page]
    assert "builtins.ValueError" in page


# --- whose words are told


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BadRequestError("The body is no JSON.")])
def test_what_the_system_and_we_say_of_a_failure_is_told_in_a_request(written: Lines, error: Exception) -> None:
    with in_a_request():
        log.error("failed", exc_info=raised(RuntimeError(SECRET), raised(error)))
    wait_until(lambda: bool(written.records()))
    (line,) = written.records()
    assert str(error) in line["failure"]
    assert SECRET not in line["failure"]
    assert "builtins.RuntimeError" in line["failure"]


def test_outside_of_a_request_all_is_told(written: Lines) -> None:
    log.error("failed", exc_info=raised(RuntimeError("the database is away")))
    wait_until(lambda: bool(written.records()))
    assert "the database is away" in written.records()[0]["failure"]


def test_a_lost_task_is_told_without_what_it_raised(written: Lines) -> None:
    logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: <Task exception=%s>", SECRET)
    wait_until(lambda: bool(written.records()))
    assert written.records()[0]["message"] == "Task exception was never retrieved"


@pytest.fixture
def vllms() -> Iterator[logging.Logger]:
    """A logger of vLLM's that an operator has set to DEBUG."""
    logger = logging.getLogger("vllm.entrypoints.anthropic.serving")
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.setLevel(logging.NOTSET)


def test_of_vllm_nothing_below_info_is_told(written: Lines, vllms: logging.Logger) -> None:
    vllms.debug("Received messages request %s", SECRET)
    with in_a_request():
        vllms.debug(SECRET)
    vllms.info("started")
    wait_until(lambda: bool(written.records()))
    assert [record["message"] for record in written.records()] == ["started"]


@pytest.mark.parametrize("quoted", [SECRET, ValueError(SECRET), [SECRET], {"prompt": SECRET}])
def test_of_vllm_nothing_is_told_that_may_quote_a_request(
    written: Lines, vllms: logging.Logger, quoted: object
) -> None:
    vllms.error("Error in preprocessing: %s", quoted)  # in a thread of vLLM's own, say, which knows no request
    vllms.error(quoted if isinstance(quoted, Exception) else "Failed.")
    with in_a_request():
        vllms.error("Token %d of %s", 7, quoted)
    wait_until(lambda: len(written.records()) == 3)
    assert SECRET not in written.getvalue()
    assert [record["message"] for record in written.records()][::2] == [
        "Error in preprocessing: %s",
        "Token %d of %s",
    ]


def test_of_vllm_numbers_are_told_outside_of_a_request(written: Lines, vllms: logging.Logger) -> None:
    vllms.warning("%d of %.1f GiB are free", 3, 4.0)
    wait_until(lambda: bool(written.records()))
    assert written.records()[0]["message"] == "3 of 4.0 GiB are free"


def in_a_request() -> ExitStack:
    stack = ExitStack()
    stack.callback(logs._NOTED.reset, logs._NOTED.set({"request_id": "req-1"}))
    return stack


# --- no line can be forged

HOSTILE = st.text(
    st.sampled_from("\r\n\x1b[31m\u2028\u2029\x85\x00\u202e\x0b\x0c \"'=\\{}aA") | st.characters(codec="utf-8")
)


@given(HOSTILE, HOSTILE)
def test_whatever_a_client_writes_is_one_json_line_of_plain_characters(message: str, value: str) -> None:
    stream = told("json", lambda: log.info("%s", message, extra={"path": value}))
    (line,) = stream.lines()
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["path"] == value


@given(HOSTILE, HOSTILE)
def test_whatever_a_client_writes_is_one_line_of_text(message: str, value: str) -> None:
    stream = told("text", lambda: log.info("%s", message, extra={"path": value}))
    assert stream.getvalue()[-1] == "\n"
    assert stream.getvalue()[:-1].isprintable()


def test_only_indented_lines_follow_in_a_failure() -> None:
    error = raised(OSError("gone\n2026-11-22T10:00:00.000Z ERROR server.access forged\x1b[31m"))
    first, *others = told("text", lambda: log.error("failed", exc_info=error)).lines()
    assert " ERROR server.test failed" in first
    assert all(line.startswith("  | ") and line.isprintable() for line in others)


def test_a_crafted_path_is_cut_and_escaped(written: Lines, world: World) -> None:
    with httpx.Client(base_url=world.live.base_url) as client:
        client.get("/%0d%0a%1b[31m" + 5000 * "x")
    wait_until(lambda: bool(written.requests()))
    (line,) = written.requests()
    assert len(line["path"]) == 200
    assert line["path"].startswith("/\r\n\x1b[31mxxx")
    assert written.getvalue().count("\n") == 1


# --- where it goes


def test_a_person_reads_text_and_all_others_json() -> None:
    assert chosen_format(None, Terminal()) == "text"
    assert chosen_format(None, io.StringIO()) == "json"
    assert chosen_format("json", Terminal()) == "json"


def test_text_names_the_fields() -> None:
    (line,) = told("text", lambda: log.info("loaded", extra={"adapter": "acme/a b", "ranks": 8})).lines()
    assert line.partition("Z ")[2] == 'INFO server.test loaded adapter="acme/a b" ranks=8'


def test_the_level_is_ours_to_set_and_others_are_heard_from_warnings_on() -> None:
    stream = Lines()
    with logging_to(stream, "json", "error"):
        log.warning("not heard")
        logging.getLogger("alembic").info("not heard")
        logging.getLogger("alembic").warning("heard")
    assert [record["message"] for record in stream.records()] == ["heard"]


def test_a_note_outside_of_a_request_is_forgotten() -> None:
    note(tenant="acme")
    assert not logs.noted()


def test_a_line_that_can_not_be_told_stops_nobody() -> None:
    stream = told("json", lambda: log.info("%d", "no number"))
    assert stream.records()[0]["message"] == "a log line could not be written"


def test_whoever_configures_logging_anew_does_not_end_ours(written: Lines) -> None:
    dictConfig({"version": 1, "disable_existing_loggers": False})
    log.info("heard")
    wait_until(lambda: bool(written.records()))


def test_a_reader_that_hangs_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "WAITING_LINES", 10)
    monkeypatch.setattr(logs, "LAST_SECONDS", 0.01)
    reads = threading.Event()

    class Hanging(Lines):
        def write(self, text: str) -> int:
            reads.wait()
            return super().write(text)

    stream = Hanging()
    with logging_to(stream, "json", "info"):
        for number in range(100):
            log.info("line %d", number)
        reads.set()
    # Told once or twice: the writer may have begun to hang before or after the first was dropped.
    wait_until(lambda: sum(record.get("lines", 1) for record in stream.records()) == 100)
    assert any(record["message"] == "log lines dropped" for record in stream.records())


def test_what_a_full_disk_did_not_take_is_counted() -> None:
    class Full(Lines):
        is_full = True

        def write(self, text: str) -> int:
            if self.is_full:
                self.is_full = False
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream = Full()
    with logging_to(stream, "json", "info"):
        log.info("lost")
        log.info("written")
    written, dropped = stream.records()
    assert (written["message"], dropped["message"], dropped["lines"]) == ("written", "log lines dropped", 1)
