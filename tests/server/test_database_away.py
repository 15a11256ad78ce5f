"""PostgreSQL is stopped under a running server: it says 503, and serves again when the database is back."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import pytest

from adapters import StorageError, UsageRow
from tests.postgres import Postgres
from tests.server.world import OPERATOR, World, in_thread, wait_until


@pytest.fixture
def database_url(own_postgres: Postgres) -> str:
    return own_postgres.url(own_postgres.create_database())


def test_what_is_used_while_the_database_is_away_is_written_once_when_it_is_back(
    make_world: Callable[..., World], own_postgres: Postgres
) -> None:
    world = make_world(ledger_seconds=0.05)
    world.close_gate()
    answer = in_thread(lambda: world.ask(max_tokens=5))
    wait_until(lambda: any(world.engine.running.values()))
    own_postgres.kill()
    world.open_gate()
    assert answer().status_code == 200
    own_postgres.start()
    today = datetime.now(UTC).date()
    usage = partial(world.registry.usage.read, OPERATOR, since=today, until=today, by=())
    wait_until(lambda: usage_is_there(usage))
    world.ask(max_tokens=1)
    wait_until(lambda: usage()[0].requests == 2)
    assert usage()[0].completion_tokens == 6


def usage_is_there(usage: Callable[[], list[UsageRow]]) -> bool:
    try:
        return bool(usage())
    except StorageError:
        return False


def test_requests_are_503_while_the_database_is_away_and_answered_when_it_is_back(
    make_world: Callable[..., World], own_postgres: Postgres
) -> None:
    world = make_world()
    world.publish("acme", "support", 1)
    answered = world.answer_marks("support")
    own_postgres.kill()
    refused = world.ask("support")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    assert refused.headers["retry-after"]
    own_postgres.start()
    wait_until(lambda: world.ask("support").status_code == 200)
    assert world.answer_marks("support") == answered
