"""What deploy/ asks of Prometheus: its rules, its alerts, and every query of the dashboard."""

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "lorikeet.json"
NAMES = re.compile(r"(?<![\w:])(?:lorikeet_\w+|process_\w+|up|[a-z]+:\w+(?::\w+)?)(?![\w:(])")
"""Metrics in an expression, and recorded ones. Label names don't begin so."""
SUFFIXES = {"counter": [""], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"], "summary": ["_sum", "_count"]}


class Query(NamedTuple):
    """One expression, and where it stands."""

    place: str
    expression: str


def rules() -> list[dict[str, Any]]:
    """Recording rules, then alerts."""
    files = (yaml.safe_load((PROMETHEUS / name).read_text()) for name in ("rules.yml", "alerts.yml"))
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """By their names."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def dashboard() -> dict[str, Any]:
    """As Grafana reads it."""
    read: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return read


def queries() -> Iterator[Query]:
    """Every expression of the dashboard and the rules, with Grafana's variables filled in as it does."""
    for rule in rules():
        yield Query(rule.get("record") or rule["alert"], rule["expr"])
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield Query(panel["title"], _filled(target["expr"]))
    for annotation in dashboard()["annotations"]["list"]:
        yield Query(annotation["name"], _filled(annotation["expr"]))


def metrics_in(expression: str) -> set[str]:
    """The metrics that an expression names."""
    return set(NAMES.findall(re.sub(r'"[^"]*"', "", expression)))


def series_names(page: str) -> set[str]:
    """What a page of metrics may hold: also of families that have no series yet."""
    kinds = re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE)
    return {f"{name}{suffix}" for name, kind in kinds for suffix in SUFFIXES[kind]}


def vllm_names() -> set[str]:
    """What vLLM's own metrics are called: read out of its source, which is not imported."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        return set()
    source = (Path(spec.origin).parent / "v1" / "metrics" / "loggers.py").read_text()
    families = set(re.findall(r'name="(vllm:\w+)"', source))
    return {f"{name}{suffix}" for name in families for suffix in ("", "_total", "_bucket", "_sum", "_count")}


def _filled(expression: str) -> str:
    for name, value in {"$tenant": ".*", "$adapter": ".*", "$__rate_interval": "1m"}.items():
        expression = expression.replace(name, value)
    return expression
