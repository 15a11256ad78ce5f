"""compose.yaml, as far as it can be judged without a Docker engine."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters import RegistrySettings
from server.settings import ServerSettings
from tests.deploy.promql import DEPLOY

FILE = DEPLOY / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]
WHOLE: dict[str, Any] = yaml.safe_load(FILE.read_text())
OURS = {f"LORIKEET_{name.upper()}" for kind in (ServerSettings, RegistrySettings) for name in kind.model_fields}


def mounts(service: dict[str, Any]) -> list[str]:
    return [str(mount).split(":")[0] for mount in service.get("volumes", [])]


def test_it_is_what_the_schema_says() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", FILE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_runs_as_nobody_special_on_a_root_that_it_can_not_write(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] not in {"root", "0"}
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["healthcheck"]["test"]
    assert not service.get("privileged")


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_alone(name: str) -> None:
    assert [port for port in SERVICES[name].get("ports", []) if not port.startswith("127.0.0.1:")] == []


def test_secrets_come_from_files_that_are_not_in_the_repository() -> None:
    assert {name: entry["file"] for name, entry in WHOLE["secrets"].items()} == {
        name: f"./secrets/{name}" for name in ("postgres_password", "platform_key", "grafana_password")
    }
    assert "deploy/secrets/" in (DEPLOY.parent / ".gitignore").read_text().splitlines()
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == WHOLE["secrets"].keys()
    named = re.findall(r"/run/secrets/(\w+)", FILE.read_text() + (DEPLOY / "prometheus/prometheus.yml").read_text())
    assert set(named) == used


def test_what_is_mounted_exists() -> None:
    files = {mount for service in SERVICES.values() for mount in mounts(service) if mount.startswith("./")}
    assert files
    assert [mount for mount in files if not (DEPLOY / mount).exists()] == []
    volumes = {mount for service in SERVICES.values() for mount in mounts(service) if mount[0].isalpha()}
    assert volumes == WHOLE["volumes"].keys()


def test_every_setting_exists() -> None:
    named = {
        name for service in SERVICES.values() for name in service.get("environment", {}) if name.startswith("LORIKEET_")
    }
    assert named
    assert named <= OURS


def test_prometheus_scrapes_the_port_that_has_the_metrics() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    admin_port = SERVICES["lorikeet"]["environment"]["LORIKEET_ADMIN_PORT"]
    assert config["scrape_configs"][0]["static_configs"] == [{"targets": [f"lorikeet:{admin_port}"]}]


def test_a_stop_waits_for_the_answers_that_run() -> None:
    assert int(SERVICES["lorikeet"]["stop_grace_period"].removesuffix("s")) > ServerSettings().drain_seconds


def test_images_are_pinned() -> None:
    tags = {name: service["image"].partition(":")[2] for name, service in SERVICES.items() if "build" not in service}
    assert [name for name, tag in tags.items() if tag in {"", "latest"}] == []


def test_grafana_finds_its_dashboards_and_its_prometheus() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "lorikeet.yaml").read_text())["providers"]
    inside = {Path(mount.split(":")[1]) for mount in SERVICES["grafana"]["volumes"]}
    assert Path(provider["options"]["path"]) in inside
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert (source["uid"], source["url"]) == ("prometheus", "http://prometheus:9090")


def test_the_entrypoint_hands_over_the_password_and_becomes_the_program(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p a$s'word")
    shell, flags, script, name = SERVICES["lorikeet"]["entrypoint"]
    script = script.replace("$$", "$").replace("/run/secrets/postgres_password", str(tmp_path / "password"))
    shown = subprocess.run(
        [shell, flags, script, name, "sh", "-c", 'printf "%s|%s|" "$PGPASSWORD" "$1"', "x", "a b"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "p a$s'word|a b|"
