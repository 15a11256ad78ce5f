"""Every query of the dashboard and of the rules, asked of a real Prometheus that scraped a real server."""

import httpx
import pytest

from tests.deploy.promql import alerts, dashboard, metrics_in, queries, rules, series_names, vllm_names
from tests.prometheus import Prometheus
from tests.server.world import World, wait_until


@pytest.fixture
def database() -> str:
    """Nothing here depends on it."""
    return "sqlite"


def test_every_query_is_answered(scraped: Prometheus) -> None:
    assert len(list(queries())) > 60
    for place, expression in queries():
        assert isinstance(scraped.query(expression), list), place


def test_rules_are_evaluated_and_nothing_fires(scraped: Prometheus) -> None:
    def evaluated() -> list[dict[str, object]]:
        return [rule for group in scraped.get("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] == "ok" for rule in evaluated()), 20)
    assert len(evaluated()) == len(rules())
    assert [rule["name"] for rule in evaluated() if rule.get("state") == "firing"] == []


def test_what_was_asked_is_seen_on_the_dashboard(scraped: Prometheus) -> None:
    by_title = dict(queries())
    assert float(scraped.query(by_title["Ready"])[0]["value"][1]) == 1
    tenants = scraped.query("sum by (tenant) (lorikeet_requests_total)")
    assert {one["metric"]["tenant"]: float(one["value"][1]) for one in tenants} == {"acme": 5, "zoo": 1}
    places = scraped.query(by_title["Resident"])
    assert [float(one["value"][1]) for one in places]


def test_every_metric_that_is_asked_for_exists(asked_world: World) -> None:
    with asked_world.client("platform") as client:
        page = client.get("/metrics").text
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = series_names(page) | vllm_names() | recorded | {"up"}
    missing = {name for _, expression in queries() for name in metrics_in(expression)} - known
    assert not missing


def test_variables_offer_what_there_is(scraped: Prometheus) -> None:
    for variable in dashboard()["templating"]["list"]:
        label = variable["definition"].rpartition(",")[2].strip(" )")
        values = httpx.get(f"{scraped.url}/api/v1/label/{label}/values").json()["data"]
        assert {"tenant": "acme", "adapter": "support"}[variable["name"]] in values


def test_the_dashboard_has_its_rows_and_no_panel_twice() -> None:
    panels = dashboard()["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        "Engine",
        "Tenants",
        "Adapters and residency",
        "Queue and overload",
    ]
    titles = [panel["title"] for panel in panels]
    assert len(titles) == len(set(titles)) == len({panel["id"] for panel in panels})
    assert all(panel["datasource"]["uid"] == "prometheus" for panel in panels if panel["type"] != "row")


def test_alerts_say_what_is_wrong_where_and_how_bad() -> None:
    for name, alert in alerts().items():
        assert alert["labels"]["severity"] in {"page", "ticket"}, name
        assert {"summary", "runbook"} <= alert["annotations"].keys(), name
