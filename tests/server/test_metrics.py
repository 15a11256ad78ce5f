"""What the metrics page tells, and that its size does not follow the number of names."""

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from server.engine.protocol import Usage
from server.metering import metered
from server.metrics import Labels, Metrics
from server.series import IDLE_SECONDS
from server.shares import Asker, Share, Turn
from tests.server.world import OPERATOR, World, wait_until


class Clock:
    """Seconds that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def series(metrics: Metrics) -> int:
    return sum(not line.startswith("#") for line in metrics.page(CollectorRegistry()).decode().splitlines())


def test_the_page_tells_tenants_adapters_and_versions_apart(world: World) -> None:
    world.publish("acme", "support", seed=1)
    world.publish("acme", "sales", seed=2)
    for name in ("support", "support", "sales", None):
        world.ask(name, max_tokens=5, n=2)
    world.ask("nobody")

    def requests(adapter: str, outcome: str, version: str) -> float:
        return world.metric(
            f'lorikeet_requests_total{{adapter="{adapter}",outcome="{outcome}",tenant="acme",version="{version}"}}'
        )

    wait_until(lambda: requests("support", "ok", "1") == 2)
    wait_until(lambda: requests("sales", "ok", "1") == requests("base", "ok", "") == requests("", "refused", "") == 1)
    completion = 'lorikeet_tokens_total{adapter="support",kind="completion",tenant="acme",version="1"}'
    assert world.metric(completion) == 2 * 2 * 5
    assert world.metric(completion.replace("completion", "prompt")) == 2 * 2
    support = '_count{adapter="support",tenant="acme",version="1"}'
    assert world.metric(f"lorikeet_time_to_first_token_seconds{support}") == 2
    assert world.metric(f"lorikeet_inter_token_seconds{support}") == 2 * (5 - 1)
    assert world.metric(f"lorikeet_request_seconds{support}") == 2
    assert world.metric(f"lorikeet_adapter_load_seconds{support}") == 1
    assert world.metric('lorikeet_queue_seconds_count{tenant="acme"}') == 4
    assert world.metric('lorikeet_resident_adapters{adapter="sales",tenant="acme",version="1"}') == 1


def test_the_page_tells_keys_apart(world: World) -> None:
    world.ask(max_tokens=5)
    world.ask(max_tokens=6)
    world.ask(key="zoo", max_tokens=7)
    (key_id,) = (key.id for key in world.registry.keys.list(OPERATOR, "acme") if key.name == "acme")
    requests = f'lorikeet_key_requests_total{{key="{key_id}",outcome="ok",tenant="acme"}}'
    wait_until(lambda: world.metric(requests) == 2)
    assert world.metric(f'lorikeet_key_tokens_total{{key="{key_id}",kind="completion",tenant="acme"}}') == 5 + 6
    assert world.metric(f'lorikeet_key_request_seconds_count{{key="{key_id}",tenant="acme"}}') == 2
    assert world.metric(f'lorikeet_key_inter_token_seconds_count{{key="{key_id}",tenant="acme"}}') == 4 + 5


def test_a_version_that_cannot_be_loaded_is_told_apart_from_the_others(world: World) -> None:
    world.publish("acme", "support", seed=1)
    world.engine.refuses_loads = True
    assert world.ask("support").status_code == 503
    failed = 'lorikeet_requests_total{adapter="support",outcome="failed",tenant="acme",version="1"}'
    wait_until(lambda: world.metric(failed) == 1)


@pytest.mark.parametrize("key", ["acme", "acme-admin"])
def test_no_tenant_sees_the_page(world: World, key: str) -> None:
    with world.client(key) as client:
        assert client.get("/metrics").status_code == 403


def test_ten_thousand_names_make_no_more_series_than_the_bound() -> None:
    metrics = Metrics(max_label_sets=20)

    def use(count: int) -> int:
        for index in range(count):
            with metered(metrics, "acme", f"key-{index}") as meter:
                meter.labels = Labels("acme", f"adapter-{index}", "1")
                meter.begin(Turn(Asker("acme"), 0.0, Share(), 0.0))
                meter.on_usage("call", Usage(1, 1))
            metrics.load_seconds.labels(*metrics.bounded(meter.labels)).observe(1)
        metrics.show_residents((Labels("acme", f"adapter-{index}", "1"), 1) for index in range(count))
        return series(metrics)

    assert use(100) == use(10_000)


def test_a_set_that_loses_its_place_takes_its_series_along() -> None:
    clock = Clock()
    metrics = Metrics(max_label_sets=3, clock=clock)

    def use(tenant: str) -> str:
        with metered(metrics, tenant) as meter:
            meter.labels = Labels(tenant, "support", "1")
            meter.begin(Turn(Asker(tenant), 0.0, Share(), 0.0))
            meter.on_usage("call", Usage(1, 1))
        metrics.load_seconds.labels(*metrics.bounded(meter.labels)).observe(1)
        return metrics.page(CollectorRegistry()).decode()

    first = use("acme")
    clock.now += IDLE_SECONDS
    second = use("zoo")
    assert "acme" in first
    assert "acme" not in second
    assert second == first.replace("acme", "zoo")


def test_a_stream_that_outlives_its_labels_is_counted_where_they_are_found_again() -> None:
    clock = Clock()
    metrics = Metrics(max_label_sets=3, clock=clock)
    labels = Labels("acme", "support", "1")
    with metered(metrics, "acme") as meter:
        meter.labels = labels
        meter.on_usage("call", Usage(1, 1))
        clock.now += IDLE_SECONDS
        metrics.bounded(Labels("zoo", "support", "1"))
        meter.on_usage("call", Usage(1, 2))
        assert metrics.sets.find(labels).labels == ("other", "other", "other")
        assert metrics.sets.find(labels).completion_tokens == 1


def test_tokens_are_counted_once_however_often_they_are_reported() -> None:
    metrics = Metrics()
    with metered(metrics, "acme") as meter:
        for usage in (Usage(7, 1, 4), Usage(7, 2), Usage(7, 2, 4)):
            meter.on_usage("first", usage)
        meter.on_usage("second", Usage(3, 4, 2))
    counted = metrics.sets.find(("acme", "", ""))
    assert (counted.prompt_tokens, counted.completion_tokens, counted.cached_tokens) == (10, 6, 6)


def test_times_run_from_the_arrival_and_between_the_outputs_of_a_call() -> None:
    clock = Clock()
    metrics = Metrics(clock=clock)
    with metered(metrics, "acme") as meter:
        clock.now = 3.0
        meter.on_usage("first", Usage(7, 1))
        clock.now = 3.5
        meter.on_usage("second", Usage(7, 1))
        meter.on_usage("first", Usage(7, 2))
        clock.now = 5.0
        meter.on_usage("first", Usage(7, 2))
        meter.on_usage("first", Usage(7, 3))
        clock.now = 6.0
    counted = metrics.sets.find(("acme", "", ""))
    assert (sum(counted.first_token.counts), counted.first_token.seconds) == (1, 3.0)
    assert (sum(counted.between_tokens.counts), counted.between_tokens.seconds) == (2, 0.5 + 1.5)
    assert (sum(counted.request.counts), counted.request.seconds) == (1, 6.0)


def test_a_names_quotes_and_breaks_stay_in_its_label() -> None:
    metrics = Metrics()
    with metered(metrics, 'a"b\\c\nd'):
        pass
    families = text_string_to_metric_families(metrics.page(CollectorRegistry()).decode())
    tenants = {sample.labels["tenant"] for family in families for sample in family.samples}
    assert tenants == {'a"b\\c\nd'}


def test_the_engines_own_page_is_shown_without_its_family_of_adapter_names() -> None:
    engine = CollectorRegistry()
    Gauge("vllm:num_requests_running", "Running", registry=engine).set(3)
    Gauge("vllm:lora_requests_info", "Names", ["running_lora_adapters"], registry=engine).labels("acme/secret").set(1)
    page = Metrics().page(engine).decode()
    assert "vllm:num_requests_running 3.0" in page
    assert "lora_requests_info" not in page
