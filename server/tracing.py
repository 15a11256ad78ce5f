"""OpenTelemetry's spans of an inference request: off unless an endpoint is set, and then nothing of it is imported.

A request's span continues the client's trace (`traceparent`), and has its steps as children; the engine's own spans are
children of the step that calls it. No prompt, no answer and no error's words are in any.
"""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import SettingsError, status_of
from server.logs import noted

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""`gen_ai.operation.name`, where OpenTelemetry has one of its own; else the path's last word."""
ATTRIBUTES: Final = {
    "request_id": "lorikeet.request_id",
    "tenant": "lorikeet.tenant",
    "adapter": "lorikeet.adapter",
    "model": "gen_ai.response.model",
    "outcome": "lorikeet.outcome",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
}
"""What is noted of a request (server/logs.py) → its name in a span."""

_TRACER: ContextVar["Tracer | None"] = ContextVar("lorikeet_tracer", default=None)


@contextmanager
def tracing_to(endpoint: str | None) -> Iterator["Tracer | None"]:
    """What makes spans and sends them, by OTLP over HTTP, while the block lasts; None without an endpoint.

    Raises:
        SettingsError: OpenTelemetry's exporter is not installed.
    """
    if endpoint is None:
        yield None
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  — if asked
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError("otlp_traces_endpoint needs OpenTelemetry: pip install 'lorikeet[otel]'") from error
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    try:
        yield provider.get_tracer("lorikeet")
    finally:
        provider.shutdown()


class Traced:
    """A span for each request to `paths`."""

    def __init__(self, app: ASGIApp, tracer: "Tracer | None", paths: Collection[str]) -> None:
        self._app = app
        self._tracer = tracer
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; the span ends with the answer."""
        if self._tracer is None or scope["type"] != "http" or scope["path"] not in self._paths:
            return await self._app(scope, receive, send)
        token = _TRACER.set(self._tracer)
        try:
            with _request_span(self._tracer, scope) as span:

                async def send_and_note(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        span.set_attribute("http.response.status_code", message["status"])
                    await send(message)

                await self._app(scope, receive, send_and_note)
        finally:
            _TRACER.reset(token)


def step(name: str) -> AbstractContextManager[object]:
    """A part of the request in hand: a child of its span. Nothing, without one."""
    tracer = _TRACER.get()
    return nullcontext() if tracer is None else _span(tracer, name)


def trace_headers() -> list[tuple[bytes, bytes]]:
    """What makes the engine's spans children of the current one."""
    if _TRACER.get() is None:
        return []
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415  — if on

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return [(name.encode(), value.encode()) for name, value in carrier.items()]


@contextmanager
def _request_span(tracer: "Tracer", scope: Scope) -> Iterator["Span"]:
    from opentelemetry.trace import SpanKind  # noqa: PLC0415  — if on
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    carrier = {name: value for name, value in Headers(scope=scope).items() if name in {"traceparent", "tracestate"}}
    parent = TraceContextTextMapPropagator().extract(carrier)
    path = scope["path"]
    attributes = {
        "http.request.method": scope["method"],
        "http.route": path,
        "gen_ai.operation.name": OPERATIONS.get(path, path.rpartition("/")[2]),
        "gen_ai.provider.name": "lorikeet",
    }
    with _span(
        tracer, f"{scope['method']} {path}", context=parent, kind=SpanKind.SERVER, attributes=attributes
    ) as span:
        try:
            yield span
        except Exception as error:
            span.set_attribute("http.response.status_code", status_of(error))
            raise
        finally:
            facts = noted()
            known = {name: facts[key] for key, name in ATTRIBUTES.items() if facts.get(key) is not None}
            span.set_attributes({name: value for name, value in known.items() if isinstance(value, str | int)})


@contextmanager
def _span(tracer: "Tracer", name: str, **options: object) -> Iterator["Span"]:
    """The current span while the block lasts. Of what the block raises, the kind is told and the words are not."""
    from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415  — if on

    options |= {"record_exception": False, "set_status_on_exception": False}
    with tracer.start_as_current_span(name, **options) as span:  # type: ignore[arg-type]  # forwarded as they are
        try:
            yield span
        except BaseException as error:
            span.set_attribute("error.type", type(error).__qualname__)
            if isinstance(error, Exception) and status_of(error) >= HTTPStatus.INTERNAL_SERVER_ERROR:
                span.set_status(Status(StatusCode.ERROR))  # a refusal is none of ours
            raise
