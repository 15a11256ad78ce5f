"""Two servers on one PostgreSQL and one store: what is told to one, the other knows at its next request."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp

from adapters import open_registry
from server.app import create_app
from server.engine.fake import FakeEngine
from tests.live_server import LiveServer
from tests.server.world import World, make_settings, wait_until

pytestmark = pytest.mark.parametrize("database", ["postgresql"])

SOON_SECONDS = 2

Pair = tuple[World, World]


@pytest.fixture
def pair(make_world: Callable[..., World], database_url: str, tmp_path: Path) -> Iterator[Pair]:
    """Each with a registry, an engine and an app of its own."""
    first = make_world()
    settings = make_settings()
    engine = FakeEngine(first.base.name, slots=settings.max_loras, host_slots=settings.max_cpu_loras)
    with open_registry(tmp_path / "home", database_url) as registry:

        def make_app() -> ASGIApp:
            return create_app(settings, registry, engine, base=first.base, secret=b"secret" * 6)

        with LiveServer(make_app) as live:
            yield first, World(registry, first.base, engine, live, first.keys, first.folder)


def test_a_promote_and_a_rollback_at_one_are_seen_by_the_other(pair: Pair) -> None:
    here, there = pair
    old = here.publish("acme", "support", 1)
    new = here.publish("acme", "support", 2, promote=False)
    before = there.answer_marks("support")
    assert before == here.answer_marks("support")
    _admin(here, "PUT", "/adapters/support/aliases/live", json={"version": new.number})
    wait_until(lambda: there.answer_marks("support") != before, SOON_SECONDS)
    assert there.answer_marks("support") == here.answer_marks("support")
    _admin(there, "POST", "/adapters/support/rollback")
    wait_until(lambda: here.answer_marks("support") == before, SOON_SECONDS)
    assert old.number == 1


def test_a_key_that_one_revokes_is_refused_by_the_other(pair: Pair) -> None:
    here, there = pair
    issued = _admin(here, "POST", "/keys", json={"name": "laptop", "scopes": ["infer"]})
    there.keys["laptop"] = issued["secret"]
    assert there.ask(key="laptop").status_code == 200
    _admin(here, "DELETE", f"/keys/{issued['id']}")
    wait_until(lambda: there.ask(key="laptop").status_code == 401, SOON_SECONDS)


def test_a_tenant_that_one_makes_is_served_by_the_other(pair: Pair) -> None:
    here, there = pair
    with here.client("platform") as client:
        client.post("/admin/v1/tenants", json={"name": "new"}).raise_for_status()
        issued = client.post("/admin/v1/tenants/new/keys", json={"name": "k", "scopes": ["infer"]})
    there.keys["new"] = issued.raise_for_status().json()["secret"]
    there.publish("new", "support", 3)
    wait_until(lambda: there.ask("support", key="new").status_code == 200, SOON_SECONDS)
    assert here.answer_marks("support", key="new") == there.answer_marks("support", key="new")


def test_one_goes_on_when_the_other_stops(pair: Pair) -> None:
    here, there = pair
    here.publish("acme", "support", 1)
    answered = here.answer_marks("support")
    here.live.__exit__(None, None, None)
    assert there.answer_marks("support") == answered


def _admin(world: World, method: str, path: str, **options: Any) -> Any:
    with world.client("acme-admin") as client:
        answer = client.request(method, f"/admin/v1/tenants/acme{path}", **options).raise_for_status()
    return answer.json()
