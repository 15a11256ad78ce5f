"""A real Prometheus scrapes a real server: what it then answers is what the ledger has."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from adapters import UsageField, UsageRow
from server.engine.protocol import Usage
from server.metering import metered
from server.metrics import Labels, Metrics
from tests.prometheus import Prometheus, promtool
from tests.server.test_hang_ups import hang_up, send_chat
from tests.server.world import OPERATOR, World, wait_until

KINDS = {"prompt": "prompt_tokens", "completion": "completion_tokens", "cached": "cached_tokens"}


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A server with two adapters, which two tenants have asked in every way."""
    world = make_world(ledger_seconds=0.05)
    world.publish("acme", "support", seed=1)
    world.publish("zoo", "keeper", seed=2)
    for fields in ({}, {"stream": True}, {"n": 3}, {"stream": True, "n": 2}, {"max_tokens": 10**6}):
        world.ask("support", **fields)
        world.ask("keeper", key="zoo", **fields)
        world.ask(**fields)
    world.ask("nobody")
    connection = send_chat(world, stream=True, max_tokens=1500)
    connection.getresponse().readline()
    world.close_gate()
    hang_up(connection)
    wait_until(lambda: sum(row.requests for row in used(world)) == 3 * 5 + 2)
    world.open_gate()
    return world


@pytest.fixture
def prometheus(world: World, tmp_path: Path) -> Iterator[Prometheus]:
    """It has the platform's key from a file, as deploy/prometheus has."""
    key = tmp_path / "platform-key"
    key.write_text(world.keys["platform"])
    job = {
        "job_name": "lorikeet",
        "scrape_interval": "2s",
        "scrape_timeout": "2s",
        "authorization": {"credentials_file": str(key)},
        "static_configs": [{"targets": [world.live.base_url.removeprefix("http://")]}],
    }
    folder = tmp_path / "prometheus"
    folder.mkdir()
    with Prometheus(folder, {"scrape_configs": [job]}) as running:
        running.wait_for_scrape()
        yield running


def used(world: World, by: tuple[UsageField, ...] = tuple(UsageField)) -> list[UsageRow]:
    today = datetime.now(UTC).date()
    return world.registry.usage.read(OPERATOR, since=today - timedelta(days=1), until=today, by=by)


def numbers(prometheus: Prometheus, expression: str) -> dict[tuple[str, ...], float]:
    """What an expression gives: by its labels' values, in the order of their names."""
    return {
        tuple(value for _, value in sorted(one["metric"].items())): float(one["value"][1])
        for one in prometheus.query(expression)
    }


@pytest.mark.parametrize("database", ["sqlite"])
def test_prometheus_answers_with_the_ledgers_numbers(world: World, prometheus: Prometheus) -> None:
    wait_until(lambda: bool(numbers(prometheus, "lorikeet_requests_total")))
    by_version = used(world, (UsageField.TENANT, UsageField.ADAPTER, UsageField.VERSION))
    wanted = {(row.adapter, row.tenant, str(row.version or "")): row for row in by_version}
    assert len(wanted) == 4

    def by(expression: str) -> dict[tuple[str, ...], float]:
        # No label is the same as an empty one to Prometheus.
        found = prometheus.query(f"sum by (tenant, adapter, version) ({expression}) > 0")
        return {
            tuple(one["metric"].get(name, "") for name in ("adapter", "tenant", "version")): float(one["value"][1])
            for one in found
        }

    def ledger(read: Callable[[UsageRow], int]) -> dict[tuple[str | None, ...], int]:
        return {labels: read(row) for labels, row in wanted.items() if read(row)}

    assert by("lorikeet_requests_total") == ledger(lambda row: row.requests)
    assert by('lorikeet_requests_total{outcome=~"failed|refused"}') == ledger(lambda row: row.failed_requests)
    assert by('lorikeet_requests_total{outcome="client_gone"}') == ledger(lambda row: row.aborted_requests)
    assert by('lorikeet_tokens_total{kind="prompt"}') == ledger(lambda row: row.prompt_tokens)
    assert by('lorikeet_tokens_total{kind="completion"}') == ledger(lambda row: row.completion_tokens)
    assert by("lorikeet_time_to_first_token_seconds_count") == ledger(lambda row: row.answered_requests)
    assert by("lorikeet_request_seconds_count") == ledger(lambda row: row.requests)
    by_key = {(row.key_id, row.tenant): row.requests for row in used(world, (UsageField.TENANT, UsageField.KEY))}
    assert numbers(prometheus, "sum by (tenant, key) (lorikeet_key_requests_total)") == by_key


@pytest.mark.parametrize("database", ["sqlite"])
def test_promtool_finds_nothing_wrong_with_the_whole_page(world: World) -> None:
    with world.client("platform") as client:
        page = client.get("/metrics")
    checked = promtool("check", "metrics", stdin=page.content)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


@pytest.mark.parametrize("database", ["sqlite"])
def test_names_that_somebody_made_up_make_no_series(world: World, prometheus: Prometheus) -> None:
    series = "count({__name__=~'lorikeet_.+'})"
    wait_until(lambda: bool(numbers(prometheus, series)))
    before = numbers(prometheus, series)
    with world.client() as client:
        for index in range(300):
            body = {"messages": [{"role": "user", "content": "hi"}], "adapter": f"made-up-{index}"}
            assert client.post("/v1/chat/completions", json=body).status_code == 404
    refused = 'sum(lorikeet_requests_total{outcome="refused",tenant="acme",adapter=""})'
    wait_until(lambda: numbers(prometheus, refused) == {(): 301})
    assert numbers(prometheus, series) == before


def test_the_page_of_ten_thousand_adapters_has_no_more_lines_than_that_of_a_hundred_and_is_clean() -> None:
    metrics = Metrics()

    def lines(adapters: int) -> int:
        for index in range(adapters):
            with metered(metrics, "acme", f"key-{index}") as meter:
                meter.labels = Labels("acme", f"adapter-{index}", "1")
                meter.on_usage("call", Usage(1, 1))
                meter.on_usage("call", Usage(1, 2))
        return metrics.page(CollectorRegistry()).count(b"\n")

    assert lines(100) == lines(10_000)
    checked = promtool("check", "metrics", stdin=metrics.page(CollectorRegistry()))
    assert (checked.returncode, checked.stderr) == (0, b"")
