"""Prometheus' own judgement on our configuration, rules and alerts."""

from pathlib import Path

import pytest
import yaml

from tests.deploy.promql import PROMETHEUS, alerts
from tests.prometheus import promtool, why_there_is_none


@pytest.fixture(autouse=True)
def _tools() -> None:
    if missing := why_there_is_none():
        pytest.skip(missing)


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    (tmp_path / "key").touch()
    config["scrape_configs"][0]["authorization"]["credentials_file"] = "key"  # promtool looks for it
    for name in config["rule_files"]:
        (tmp_path / name).symlink_to(PROMETHEUS / name)
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    checked = promtool("check", "config", "--lint-fatal", tmp_path / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_rules_are_valid() -> None:
    checked = promtool("check", "rules", "--lint-fatal", PROMETHEUS / "rules.yml", PROMETHEUS / "alerts.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_alert_fires_on_its_symptom_and_none_on_a_calm_server() -> None:
    checked = promtool("test", "rules", PROMETHEUS / "tests.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_no_alert_is_without_a_test() -> None:
    page = (PROMETHEUS / "tests.yml").read_text()
    assert [name for name in alerts() if f'{{alertname="{name}"}}' not in page] == []
