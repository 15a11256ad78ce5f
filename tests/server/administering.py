"""The admin API, as clients call it."""

from typing import Any

import httpx

from adapters import Version
from tests.server.world import World

ACME = "/admin/v1/tenants/acme"
SUPPORT = f"{ACME}/adapters/support"
LIVE = f"{SUPPORT}/aliases/live"


def call(world: World, method: str, path: str, key: str = "acme-admin", **request: Any) -> httpx.Response:
    """One request."""
    with world.client(key) as client:
        return client.request(method, path, **request)


def read(world: World, path: str, key: str = "acme-admin") -> Any:
    """What is there."""
    answer = call(world, "GET", path, key)
    assert answer.status_code == 200, answer.text
    return answer.json()


def publish(world: World, count: int, **options: Any) -> list[Version]:
    """So many versions of acme/support, past the server."""
    return [world.publish("acme", "support", seed=seed, **options) for seed in range(1, count + 1)]


def split(*arms: tuple[Any, Any]) -> dict[str, Any]:
    """The body that splits an alias between versions with weights."""
    return {"split": [{"version": version, "weight": weight} for version, weight in arms]}
