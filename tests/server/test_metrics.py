"""What the metrics page tells, and that its size does not follow the number of names."""

from prometheus_client import CollectorRegistry, Gauge

from server.engine.protocol import Usage
from server.metering import metered
from server.metrics import Labels, Metrics
from tests.server.world import World, wait_until


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
    assert world.metric('lorikeet_time_to_first_token_seconds_count{adapter="support",tenant="acme"}') == 2
    assert world.metric('lorikeet_adapter_load_seconds_count{adapter="support",tenant="acme"}') == 1
    assert world.metric('lorikeet_resident_adapters{adapter="sales",tenant="acme",version="1"}') == 1


def test_ten_thousand_names_make_no_more_series_than_the_bound() -> None:
    metrics = Metrics(max_label_sets=20)

    def use(count: int) -> int:
        for index in range(count):
            with metered(metrics, "acme") as meter:
                meter.labels = Labels("acme", f"adapter-{index}", "1")
                meter.on_usage("call", Usage(1, 1))
        metrics.show_residents((Labels("acme", f"adapter-{index}", "1"), 1) for index in range(count))
        return series(metrics)

    assert use(100) == use(10_000)


def test_a_tenant_that_has_used_up_its_labels_shares_its_own_and_takes_nobody_elses() -> None:
    metrics = Metrics(max_label_sets=1000, max_tenant_sets=20)
    greedy = [metrics.bounded(Labels("acme", f"adapter-{index}", "1")) for index in range(2000)]
    assert len(set(greedy)) == 20
    assert greedy[-1] == Labels("acme", "other", "other")
    assert greedy[0] == metrics.bounded(greedy[0])
    assert metrics.bounded(Labels("zoo", "keeper", "1")) == Labels("zoo", "keeper", "1")


def test_ten_thousand_tenants_make_no_more_label_sets_than_the_bound() -> None:
    metrics = Metrics(max_label_sets=100)
    seen = [metrics.bounded(Labels(f"tenant-{index}", "support", "1")) for index in range(10_000)]
    assert len(set(seen)) <= 100
    assert seen[-1] == Labels("other", "other", "other")
    assert metrics.bounded(Labels("tenant-0", "another", "1")) == Labels("tenant-0", "other", "other")


def test_tokens_are_counted_once_however_often_they_are_reported() -> None:
    metrics = Metrics()
    with metered(metrics, "acme") as meter:
        for usage in (Usage(7, 1), Usage(7, 2), Usage(7, 2)):
            meter.on_usage("first", usage)
        meter.on_usage("second", Usage(3, 4))
    tokens = {kind: metrics.tokens.labels("acme", "", "", kind)._value.get() for kind in ("prompt", "completion")}
    assert tokens == {"prompt": 10, "completion": 6}


def test_the_engines_own_page_is_shown_without_its_family_of_adapter_names() -> None:
    engine = CollectorRegistry()
    Gauge("vllm:num_requests_running", "Running", registry=engine).set(3)
    Gauge("vllm:lora_requests_info", "Names", ["running_lora_adapters"], registry=engine).labels("acme/secret").set(1)
    page = Metrics().page(engine).decode()
    assert "vllm:num_requests_running 3.0" in page
    assert "lora_requests_info" not in page
