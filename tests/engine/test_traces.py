"""One trace from the client through the gateway into vLLM, at a collector. It starts an engine of its own."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters import Base, Limits, Scope, open_registry
from server.app import create_app
from server.engine.environment import prepare_environment
from server.settings import ServerSettings
from server.tracing import tracing_to
from tests.engine.conftest import ALL_LINEAR, OPERATOR
from tests.live_server import LiveServer

pytestmark = [pytest.mark.engine, pytest.mark.slow]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[Any]:
    """Takes spans by OTLP over HTTP: `spans`, by name."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans: dict[str, Any] = {}

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            for resource in sent.resource_spans:
                for scope in resource.scope_spans:
                    spans.update({span.name: span for span in scope.spans})
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.spans = spans  # type: ignore[attr-defined]
    yield server
    server.shutdown()
    server.server_close()


def test_vllms_span_is_in_the_trace_that_the_client_began(tiny_base: Base, tmp_path: Path, collector: Any) -> None:
    prepare_environment()
    from opentelemetry import trace

    from server.engine.vllm import VllmEngine

    endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    engine = VllmEngine(
        model=Path(tiny_base.path),
        base_name=tiny_base.name,
        slots=1,
        host_slots=2,
        max_rank=8,
        target_modules=ALL_LINEAR,
        max_model_len=256,
        kv_cache_memory_bytes=1 << 27,
        dtype="float32",
        otlp_traces_endpoint=endpoint,
    )
    with open_registry(tmp_path / "home", limits=Limits(max_rank=8)) as registry, tracing_to(endpoint) as tracer:
        registry.bases.add(OPERATOR, tiny_base)
        registry.tenants.create(OPERATOR, "acme")
        key = registry.keys.issue(OPERATOR, "acme", name="test", scopes=frozenset({Scope.INFER})).secret

        def make_app() -> Any:
            settings = ServerSettings(max_loras=1, max_cpu_loras=2)
            return create_app(settings, registry, engine, base=tiny_base, secret=b"s" * 32, tracer=tracer)

        with LiveServer(make_app) as live:
            body = {"messages": [{"role": "user", "content": "mark-of-a-secret"}], "max_tokens": 3}
            headers = {"authorization": f"Bearer {key}", "traceparent": f"00-{TRACE}-{PARENT}-01"}
            answer = httpx.post(f"{live.base_url}/v1/chat/completions", json=body, headers=headers, timeout=120)
            assert answer.status_code == 200, answer.text
            trace.get_tracer_provider().force_flush()  # type: ignore[attr-defined]  # vLLM's, in this process
    request, inner, step = (collector.spans[name] for name in ("POST /v1/chat/completions", "llm_request", "engine"))
    assert {span.trace_id.hex() for span in (request, inner, step)} == {TRACE}
    assert request.parent_span_id.hex() == PARENT
    assert step.parent_span_id == request.span_id
    assert inner.parent_span_id == step.span_id
    assert "mark-of-a-secret" not in "".join(map(str, collector.spans.values()))
