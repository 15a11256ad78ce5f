"""What the server says of itself: one line an event, as JSON or as text, and one line a request when it ends.

Every line of a request carries its id and its tenant. No prompt, no answer, no key, no header and no query is in any: a
failure that is not ours or the system's is told by its kind and its place, for its words may quote the request. Nobody
can forge a line: what can't be printed is escaped. A reader that hangs stops nobody: lines are dropped, and counted.
"""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from queue import Full, Queue
from threading import Thread
from time import monotonic
from traceback import format_tb
from types import TracebackType
from typing import Any, Final, Literal, TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LogFormat = Literal["json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]

HEALTH_PATHS: Final = frozenset({"/healthz", "/readyz"})
OURS: Final = frozenset({"adapters", "server"})
"""Packages whose log levels are an operator's to set, and whose errors say nothing that a client sent."""
WAITING_LINES: Final = 10_000
VLLM: Final = "vllm"
MAX_CHARACTERS: Final = 4096
"""Of a message, or of a field."""
MAX_PATH_CHARACTERS: Final = 200
LAST_SECONDS: Final = 1.0
"""How long the end of the process waits for its last lines."""

_NOTED: ContextVar[dict[str, object] | None] = ContextVar("lorikeet_noted", default=None)

access = logging.getLogger("server.access")
log = logging.getLogger(__name__)


def note(**fields: object) -> None:
    """Add to what is known of the request in hand: it is in all its later lines. Outside of one, nothing happens."""
    if (noted := _NOTED.get()) is not None:
        noted.update(fields)


def noted() -> Mapping[str, object]:
    """What is known of the request in hand."""
    return _NOTED.get() or {}


class AccessLog:
    """One line a request, when it has ended, however that was. Stands inside of what gives requests their ids."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and tell."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = monotonic()
        token = _NOTED.set({"request_id": scope["state"]["request_id"]})

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                note(status=message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            if scope["path"] not in HEALTH_PATHS:
                path = scope["path"][:MAX_PATH_CHARACTERS]
                duration_ms = round(1000 * (monotonic() - began), 1)
                access.info("request", extra={"method": scope["method"], "path": path, "duration_ms": duration_ms})
            _NOTED.reset(token)


@contextmanager
def logging_to(stream: TextIO, log_format: LogFormat | None, level: LogLevel) -> Iterator[None]:
    """Log to `stream` while the block lasts: in text where a person reads it, in JSON elsewhere, unless told.

    What others log (uvicorn, SQLAlchemy …) is logged from warnings on.
    """
    handler = _Lines(stream, _TextFormatter() if chosen_format(log_format, stream) == "text" else _json_formatter())
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())
    try:
        yield
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        for name in OURS:
            logging.getLogger(name).setLevel(logging.NOTSET)
        handler.finish()


def chosen_format(log_format: LogFormat | None, stream: TextIO = sys.stderr) -> LogFormat:
    """What is meant if nothing was said."""
    return log_format or ("text" if stream.isatty() else "json")


class _Lines(logging.Handler):
    """Writes in a thread of its own: whoever logs waits for no reader.

    `close` ends nothing: whoever configures logging anew, as vLLM does, closes every handler that there is.
    """

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._stream = stream
        self._waiting: Queue[str | None] = Queue(WAITING_LINES)
        self._dropped = 0
        self._thread = Thread(target=self._write, name="logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line. Its fields are read here, in the request's own context."""
        if record.levelno < logging.INFO and _package(record.name) == VLLM:
            return  # at this level it tells whole requests
        try:
            line = self.format(_told(record))
        except Exception:  # noqa: BLE001  — the edge: what can't be told must not fail what it tells of
            line = self.format(_record(logging.ERROR, "a log line could not be written", logger_name=record.name))
        try:
            self._waiting.put_nowait(line)
        except Full:
            self._dropped += 1

    def finish(self) -> None:
        """Write what waits, unless its reader hangs."""
        try:
            self._waiting.put(None, timeout=LAST_SECONDS)
            self._thread.join(LAST_SECONDS)
        except Full:
            pass
        super().close()

    def _write(self) -> None:
        for line in iter(self._waiting.get, None):
            lines = [line]
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                lines.append(self.format(_record(logging.WARNING, "log lines dropped", lines=dropped)))
            try:
                self._stream.write("".join(f"{one}\n" for one in lines))
                self._stream.flush()
            except (OSError, ValueError):  # a closed pipe, a full disk
                self._dropped += len(lines)


def _record(level: int, message: str, *, logger_name: str = __name__, **fields: object) -> logging.LogRecord:
    record = logging.LogRecord(logger_name, level, "", 0, message, None, None)
    record.__dict__.update(fields)
    return record


def _told(record: logging.LogRecord) -> logging.LogRecord:
    """A copy that knows its request, and holds nothing that may quote it."""
    told = logging.makeLogRecord(dict(record.__dict__))
    message = _written_by_vllm(record) if _may_quote(record) else record.getMessage()
    # asyncio's lines on lost tasks hold what the task raised, word by word, from the second line on.
    told.msg, told.args = (message.partition("\n")[0] if record.name == "asyncio" else message)[:MAX_CHARACTERS], None
    for name, value in noted().items():
        told.__dict__.setdefault(name, value)
    for name, value in _extras(told).items():
        told.__dict__[name] = value[:MAX_CHARACTERS] if isinstance(value, str) else value
    error = record.exc_info[1] if record.exc_info else None
    # Where no request is in hand, what failed speaks of the database, the disk or the engine.
    is_of_a_request = bool(noted()) or _package(record.name) in {"uvicorn", "asyncio", VLLM}
    told.exc_info, told.stack_info = None, None
    told.exc_text = _failure(error, is_of_a_request=is_of_a_request) if error is not None else None
    return told


def _may_quote(record: logging.LogRecord) -> bool:
    """Whether what vLLM puts into its message may be a request's: it works on requests in threads of its own, too."""
    args = record.args.values() if isinstance(record.args, Mapping) else record.args or ()
    told = (record.msg, *args) if not isinstance(record.msg, str) else args
    return _package(record.name) == VLLM and (bool(noted()) or any(not isinstance(one, int | float) for one in told))


def _written_by_vllm(record: logging.LogRecord) -> str:
    """Its message before anything is put into it; of an error in its place, the kind."""
    return record.msg if isinstance(record.msg, str) else type(record.msg).__qualname__


def _failure(error: BaseException, *, is_of_a_request: bool) -> str:
    """The traceback, from the cause on; with the words of those errors that can't quote a request."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        may_be_told = not is_of_a_request or isinstance(seen, OSError) or _package(type(seen).__module__) in OURS
        name = f"{type(seen).__module__}.{type(seen).__qualname__}"
        parts.append(_frames(seen.__traceback__) + (f"{name}: {seen}"[:MAX_CHARACTERS] if may_be_told else name))
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return "\n".join(reversed(parts))


def _frames(place: TracebackType | None) -> str:
    return "".join(format_tb(place))


def _package(name: str) -> str:
    """Of a module, or of a logger that is named after one."""
    return name.partition(".")[0]


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in record.__dict__.items() if name not in RESERVED_ATTRS}


def _json_formatter() -> logging.Formatter:
    return JsonFormatter(
        ["levelname", "name", "message"],
        style=",",
        rename_fields={"levelname": "level", "name": "logger", "exc_info": "failure"},
        timestamp="time",
        json_default=str,
    )


class _TextFormatter(logging.Formatter):
    """`2026-11-22T10:00:00.000Z INFO server.access request method=POST …`, and a failure's frames indented below."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and more only if they are indented."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = (f"{name}={_printable(_plain(value))}" for name, value in _extras(record).items())
        words = (moment.replace("+00:00", "Z"), record.levelname, record.name, _printable(record.getMessage()), *fields)
        lines = [" ".join(words), *(f"  | {_printable(line)}" for line in (record.exc_text or "").splitlines())]
        return "\n".join(lines)


def _plain(value: object) -> str:
    """A value that ends at the next space."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return json.dumps(text, ensure_ascii=False) if not text or " " in text or '"' in text or "=" in text else text


def _printable(text: str) -> str:
    """Without line ends, terminal commands and what turns text around."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
