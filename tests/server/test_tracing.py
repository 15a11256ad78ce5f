"""A request's spans: the client's trace goes on through the gateway into the engine, and nothing of what was asked."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.errors import SettingsError
from server.tracing import step, trace_headers, tracing_to
from tests.server.world import World, wait_until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SECRET = "mark-of-a-secret"


@pytest.fixture
def database() -> str:
    """Nothing here depends on it."""
    return "sqlite"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> Tracer:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider.get_tracer("test")


@pytest.fixture
def traced(make_world: Callable[..., World], tracer: Tracer) -> World:
    return make_world(tracer=tracer)


def finished(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    """By name, once the request's own has ended."""
    wait_until(lambda: any(span.kind is SpanKind.SERVER for span in spans.get_finished_spans()))
    return {span.name: span for span in spans.get_finished_spans()}


def parent_of(span: ReadableSpan) -> str | None:
    return f"{span.parent.span_id:016x}" if span.parent else None


def id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_request_has_a_span_with_its_steps_in_it(traced: World, spans: InMemorySpanExporter) -> None:
    traced.publish("acme", "support", seed=1)
    traced.ask("support", max_tokens=3)
    found = finished(spans)
    request = found.pop("POST /v1/chat/completions")
    assert parent_of(request) is None
    assert found.keys() == {"authenticate", "queue", "load", "engine"}
    assert {parent_of(span) for span in found.values()} == {id_of(request)}
    assert all(span.status.status_code is StatusCode.UNSET for span in (request, *found.values()))


def test_the_span_says_who_asked_what_answered_and_what_it_used(traced: World, spans: InMemorySpanExporter) -> None:
    traced.publish("acme", "support", seed=1)
    answer = traced.ask("support", max_tokens=3)
    assert attributes(finished(spans)["POST /v1/chat/completions"]) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "lorikeet",
        "gen_ai.response.model": "acme/support@1",
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "lorikeet.request_id": answer.headers["x-request-id"],
        "lorikeet.tenant": "acme",
        "lorikeet.adapter": "support@1",
        "lorikeet.outcome": "ok",
    }


def test_the_clients_trace_goes_on_into_the_engine(traced: World, spans: InMemorySpanExporter) -> None:
    with traced.client() as client:
        body = {"messages": [{"role": "user", "content": "hello"}]}
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
        client.post("/v1/chat/completions", json=body, headers=headers)
    found = finished(spans)
    assert parent_of(found["POST /v1/chat/completions"]) == PARENT
    (inner,) = traced.engine.seen_headers
    assert inner["traceparent"] == f"00-{TRACE}-{id_of(found['engine'])}-01"
    assert inner["tracestate"] == "vendor=1"


def test_a_trace_that_the_client_does_not_want_kept_is_not(traced: World, spans: InMemorySpanExporter) -> None:
    with traced.client() as client:
        body = {"messages": [{"role": "user", "content": "hello"}]}
        client.post("/v1/chat/completions", json=body, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    traced.ask()
    assert finished(spans)
    assert len([span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]) == 1


@pytest.mark.parametrize("traceparent", ["nonsense", f"00-{TRACE}-{PARENT}", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_trace_that_makes_no_sense_is_begun_anew(
    traced: World, spans: InMemorySpanExporter, traceparent: str
) -> None:
    with traced.client() as client:
        body = {"messages": [{"role": "user", "content": "hello"}]}
        answer = client.post("/v1/chat/completions", json=body, headers={"traceparent": traceparent})
    assert answer.status_code == 200
    assert parent_of(finished(spans)["POST /v1/chat/completions"]) is None


def test_a_failure_is_told_by_its_kind(
    traced: World, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr("server.gateway.authenticate", fail)
    assert traced.ask().status_code == 500
    found = finished(spans)
    for span in found.values():
        assert (span.status.status_code, attributes(span)["error.type"]) == (StatusCode.ERROR, "ValueError")
        assert not span.events
    assert attributes(found["POST /v1/chat/completions"])["http.response.status_code"] == 500
    assert SECRET not in "".join(span.to_json() for span in found.values())


def test_a_refusal_is_no_failure_of_ours(traced: World, spans: InMemorySpanExporter) -> None:
    assert traced.ask("nothing").status_code == 404
    request = finished(spans)["POST /v1/chat/completions"]
    assert attributes(request)["http.response.status_code"] == 404
    assert request.status.status_code is StatusCode.UNSET


def test_no_span_holds_what_was_asked_or_answered(traced: World, spans: InMemorySpanExporter) -> None:
    traced.publish("acme", "support", seed=1)
    answer = traced.ask("support", prompt=SECRET, user=SECRET)
    finished(spans)
    page = "".join(span.to_json() for span in spans.get_finished_spans())
    words = answer.json()["choices"][0]["message"]["content"].split()
    assert not [mark for mark in (SECRET, *words, *traced.keys.values()) if mark in page]


def test_what_is_no_inference_has_no_span(traced: World, spans: InMemorySpanExporter) -> None:
    with traced.client("platform") as client:
        client.get("/metrics")
    traced.ask()
    finished(spans)
    assert [span.name for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER] == [
        "POST /v1/chat/completions"
    ]


def test_without_an_endpoint_there_are_no_spans_and_the_engine_hears_nothing_of_the_clients(world: World) -> None:
    with world.client() as client:
        body = {"messages": [{"role": "user", "content": "hello"}]}
        client.post("/v1/chat/completions", json=body, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert "traceparent" not in world.engine.seen_headers[0]
    with tracing_to(None) as tracer:
        assert tracer is None
    with step("alone"):
        assert trace_headers() == []


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    code = """
import sys
import server.running
from server.tracing import step, trace_headers, tracing_to
with tracing_to(None), step("alone"):
    trace_headers()
sys.exit(any(name.startswith("opentelemetry") for name in sys.modules))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_an_endpoint_without_the_exporter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match=r"lorikeet\[otel\]"), tracing_to("http://127.0.0.1:4318/v1/traces"):
        pass


@pytest.fixture
def collector() -> Iterator[Any]:
    """Takes what is sent by OTLP over HTTP."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    taken: list[tuple[str, bytes]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.taken = taken  # type: ignore[attr-defined]
    yield server
    server.shutdown()
    server.server_close()


def test_spans_arrive_at_a_collector(collector: Any) -> None:
    with tracing_to(f"http://127.0.0.1:{collector.server_port}/v1/traces") as tracer:
        assert tracer is not None
        with tracer.start_as_current_span("a request"):
            carrier: dict[str, str] = {}
            TraceContextTextMapPropagator().inject(carrier)
    ((path, body),) = collector.taken
    assert path == "/v1/traces"
    assert b"a request" in body or body[:2] == b"\x1f\x8b"
