"""A real Prometheus that has scraped a real server: the app on the fake engine, after some traffic."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.promql import PROMETHEUS
from tests.prometheus import Prometheus, why_there_is_none
from tests.server.conftest import database_url, make_world
from tests.server.world import World

__all__ = ["database_url", "make_world"]


@pytest.fixture
def asked_world(make_world: Callable[..., World]) -> World:
    """A server after some traffic: the base, adapters, a load that failed, a name that means nothing."""
    world = make_world(max_loras=2, max_cpu_loras=3)
    for number, adapter in enumerate(("support", "sales", "legal", "news")):
        world.publish("acme", adapter, seed=number)
        world.ask(adapter)
    world.ask("nothing")
    world.ask(key="zoo")
    return world


@pytest.fixture
def scraped(asked_world: World, tmp_path: Path) -> Iterator[Prometheus]:
    """What scraped it, with our rules and alerts."""
    if missing := why_there_is_none():
        pytest.skip(missing)
    key = tmp_path / "platform_key"
    key.write_text(asked_world.keys["platform"])
    folder = tmp_path / "prometheus"
    folder.mkdir()
    with Prometheus(folder, _config(key, asked_world.live.base_url)) as prometheus:
        prometheus.wait_for_scrape()
        yield prometheus


def _config(key: Path, url: str) -> dict[str, Any]:
    """deploy/prometheus/prometheus.yml, with a key and a target of this machine's."""
    config: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"}
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    (scrape,) = config["scrape_configs"]
    scrape["authorization"]["credentials_file"] = str(key)
    scrape["static_configs"] = [{"targets": [url.removeprefix("http://")]}]
    return config
