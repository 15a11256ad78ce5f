"""What was used is written down once, whatever happens to the database, and is the same as the metrics say."""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from adapters import Caller, NotFoundError, Registry, Scope, StorageError, TenantLimits, UsageField, UsageRow
from adapters.database import Database
from adapters.limits import Limits
from adapters.registry import open_registry
from adapters.storage import open_blobs
from server.engine.protocol import Usage
from server.ledger import Ledger
from server.metering import metered
from server.metrics import Labels, Metrics
from server.threads import Threads
from tests.server.test_hang_ups import hang_up, send_chat
from tests.server.world import OPERATOR, World, wait_until

USER = Caller("acme", frozenset({Scope.INFER}), "user", key_id="key-1", limits=TenantLimits(monthly_tokens=100))
SUPPORT = Labels("acme", "support", "3")
BASE = Labels("acme", "base", "")
Open = Callable[[], Registry]


class Calendar:
    """A moment that the test moves."""

    now = datetime(2026, 11, 30, 23, 59, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def calendar() -> Calendar:
    return Calendar()


@pytest.fixture
def open_again(tmp_path: Path) -> Iterator[Open]:
    """The registry, which waits for nobody's lock for long."""
    home = tmp_path / "home"
    with open_registry(home) as first:
        first.tenants.create(OPERATOR, "acme")
    opened = []

    def open_one() -> Registry:
        database = Database(f"sqlite:///{home / 'registry.db'}", wait_seconds=0.01)
        opened.append(Registry(database, open_blobs(home), home, Limits()))
        return opened[-1]

    yield open_one
    for registry in opened:
        registry.close()


@pytest.fixture
def registry(open_again: Open) -> Registry:
    return open_again()


@contextmanager
def locked(tmp_path: Path) -> Iterator[None]:
    """Another program holds the database's lock."""
    with closing(sqlite3.connect(tmp_path / "home" / "registry.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def make_ledger(registry: Registry, calendar: Calendar, **options: Any) -> Ledger:
    return Ledger(registry, Threads(), **{"every_seconds": 3600.0, "calendar": calendar, **options})


def use(ledger: Ledger, prompt: int, completion: int, labels: Labels = SUPPORT, caller: Caller = USER) -> None:
    """One request, as the gateway meters it."""
    with metered(Metrics(clock=lambda: 0.0), "acme", "key-1", ledger.book(caller)) as meter:
        meter.labels = labels
        meter.on_usage("call", Usage(prompt, 0))
        meter.on_usage("call", Usage(prompt, completion))
        meter.outcome = meter.outcome.OK


def rows(registry: Registry, by: tuple[UsageField, ...] = tuple(UsageField)) -> list[UsageRow]:
    return registry.usage.read(OPERATOR, since=date(2020, 1, 1), until=date(2030, 1, 1), by=by)


def total(registry: Registry) -> tuple[int, int, int, int]:
    summed = rows(registry, by=())
    row = summed[0] if summed else UsageRow()
    return row.requests, row.failed_requests, row.prompt_tokens, row.completion_tokens


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_requests_are_told_apart_by_who_asked_and_who_answered(registry: Registry, calendar: Calendar) -> None:
    async def story() -> None:
        ledger = make_ledger(registry, calendar)
        use(ledger, 1, 2)
        use(ledger, 1, 2)
        use(ledger, 3, 4, BASE)
        use(ledger, 5, 6, Labels("acme", "globex/support", "1"))
        await ledger.flush()

    run(story())
    november = date(2026, 11, 30)
    assert rows(registry) == [
        UsageRow(november, "acme", "base", 0, "key-1", 1, 0, 3, 4, answered_requests=1),
        UsageRow(november, "acme", "globex/support", 1, "key-1", 1, 0, 5, 6, answered_requests=1),
        UsageRow(november, "acme", "support", 3, "key-1", 2, 0, 2, 4, answered_requests=2),
    ]


def test_a_request_that_fails_has_used_what_it_used(registry: Registry, calendar: Calendar) -> None:
    def fail(ledger: Ledger, error: Exception) -> None:
        with metered(Metrics(), "acme", "key-1", ledger.book(USER)) as meter:
            meter.labels = SUPPORT
            meter.on_usage("call", Usage(2, 3))
            raise error

    async def story() -> None:
        ledger = make_ledger(registry, calendar)
        for error in (NotFoundError("no"), ZeroDivisionError()):
            with pytest.raises(type(error)):
                fail(ledger, error)
        await ledger.flush()

    run(story())
    assert total(registry) == (2, 2, 4, 6)


def test_a_request_whose_client_has_gone_has_used_what_it_used_and_has_not_failed(
    registry: Registry, calendar: Calendar
) -> None:
    async def story() -> None:
        ledger = make_ledger(registry, calendar)
        with suppress(ClientDisconnect), metered(Metrics(), "acme", "key-1", ledger.book(USER)) as meter:
            meter.labels = SUPPORT
            meter.on_usage("call", Usage(2, 3))
            raise ClientDisconnect
        meter.on_usage("call", Usage(2, 4))  # a token that was made before the engine knew
        await ledger.flush()

    run(story())
    (row,) = rows(registry)
    assert (row.requests, row.aborted_requests, row.failed_requests, row.completion_tokens) == (1, 1, 0, 4)


def test_times_and_cached_tokens_are_written_down(registry: Registry, calendar: Calendar) -> None:
    moments = iter((0.0, 0.25, 0.3, 0.5))

    async def story() -> None:
        ledger = make_ledger(registry, calendar)
        metrics = Metrics(clock=lambda: 0.0)
        metrics.clock = lambda: next(moments)
        with metered(metrics, "acme", "key-1", ledger.book(USER)) as meter:
            meter.on_usage("call", Usage(9, 1, 8))
            meter.on_usage("call", Usage(9, 2, 8))
        with metered(Metrics(clock=lambda: 0.0), "acme", "key-1", ledger.book(USER)):
            pass  # refused before it was answered
        await ledger.flush()

    run(story())
    (row,) = rows(registry)
    assert (row.requests, row.answered_requests, row.cached_tokens) == (2, 1, 8)
    assert (row.mean_first_token_ms, row.mean_request_ms) == (250, 500 / 2)


def test_what_was_used_until_midnight_is_that_days(registry: Registry, calendar: Calendar) -> None:
    async def story() -> None:
        ledger = make_ledger(registry, calendar)
        with metered(Metrics(), "acme", "key-1", ledger.book(USER)) as meter:
            meter.labels = SUPPORT
            meter.on_usage("call", Usage(10, 1))
            calendar.now = datetime(2026, 12, 1, tzinfo=UTC)
            meter.on_usage("call", Usage(10, 5))
        await ledger.flush()

    run(story())
    assert [(row.day, row.requests, row.prompt_tokens, row.completion_tokens) for row in rows(registry)] == [
        (date(2026, 11, 30), 0, 10, 1),
        (date(2026, 12, 1), 1, 0, 4),
    ]


def test_the_end_of_the_server_writes_the_rest(registry: Registry, calendar: Calendar) -> None:
    async def story() -> None:
        async with make_ledger(registry, calendar) as ledger:
            use(ledger, 1, 2)

    run(story())
    assert total(registry) == (1, 0, 1, 2)


def test_a_killed_server_loses_only_what_it_used_since_it_last_wrote(
    registry: Registry, calendar: Calendar, open_again: Open
) -> None:
    async def story() -> None:
        ledger = await make_ledger(registry, calendar, every_seconds=0.01).__aenter__()
        use(ledger, 1, 2)
        await asyncio.to_thread(wait_until, lambda: total(registry) == (1, 0, 1, 2))
        ledger._writer.cancel()  # nothing is told to stop, and nothing is written any more
        use(ledger, 100, 200)

    run(story())
    assert total(open_again()) == (1, 0, 1, 2)


def test_while_the_database_is_locked_counts_add_up_and_are_then_written_once(
    registry: Registry, calendar: Calendar, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        ledger = make_ledger(registry, calendar)
        use(ledger, 1, 2)
        await ledger.flush()
        with locked(tmp_path):
            for _ in range(3):
                use(ledger, 10, 20)
                await ledger.flush()
        assert total(registry) == (1, 0, 1, 2)
        use(ledger, 100, 200, BASE)
        await ledger.flush()
        await ledger.flush()

    run(story())
    assert total(registry) == (5, 0, 131, 262)
    assert caplog.messages == ["usage could not be written"] * 3


def test_what_is_used_while_a_batch_is_written_goes_into_the_next(registry: Registry, calendar: Calendar) -> None:
    async def story() -> None:
        ledger = make_ledger(registry, calendar)
        use(ledger, 1, 2)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ledger.flush())
            await asyncio.sleep(0)
            use(ledger, 10, 20)
        assert total(registry) == (1, 0, 1, 2)
        await ledger.flush()

    run(story())
    assert total(registry) == (2, 0, 11, 22)


def test_a_database_that_stays_away_takes_up_no_more_memory_and_no_token_is_lost(
    registry: Registry, calendar: Calendar, tmp_path: Path
) -> None:
    async def story() -> None:
        ledger = make_ledger(registry, calendar, max_accounts=10)
        with locked(tmp_path):
            for version in range(1, 51):
                use(ledger, 1, 2, Labels("acme", "support", str(version)))
                await ledger.flush() if version % 10 == 0 else None
        await ledger.flush()

    run(story())
    assert total(registry) == (50, 0, 50, 100)
    assert len(rows(registry)) == 11
    assert rows(registry)[0].adapter == ""


# --- the month --------------------------------------------------------------------------------------------------------


def test_a_month_is_what_is_written_and_what_is_not_yet(registry: Registry, calendar: Calendar, tmp_path: Path) -> None:
    async def story() -> None:
        await _write(make_ledger(registry, calendar), 10)
        ledger = make_ledger(registry, calendar)
        await ledger.learn(USER)
        assert ledger.month_tokens("acme") == 10
        use(ledger, 1, 2)
        assert ledger.month_tokens("acme") == 13
        with locked(tmp_path):
            await ledger.flush()
        assert ledger.month_tokens("acme") == 13
        await ledger.flush()
        assert ledger.month_tokens("acme") == 13
        assert ledger.month_tokens("zoo") == 0

    run(story())


def test_a_new_month_begins_at_nothing(registry: Registry, calendar: Calendar) -> None:
    async def story() -> None:
        ledger = make_ledger(registry, calendar)
        await ledger.learn(USER)
        await _write(ledger, 10)
        use(ledger, 1, 2)
        calendar.now = datetime(2026, 12, 1, tzinfo=UTC)
        assert ledger.month_tokens("acme") == 0
        await ledger.flush()
        await ledger.learn(USER)
        use(ledger, 3, 4)
        assert ledger.month_tokens("acme") == 7
        await ledger.flush()

    run(story())
    by_day = [(row.day, row.prompt_tokens) for row in rows(registry, by=(UsageField.DAY,))]
    assert by_day == [(date(2026, 11, 30), 11), (date(2026, 12, 1), 3)]


def test_a_clock_that_steps_over_a_months_end_and_back_frees_nothing(registry: Registry, calendar: Calendar) -> None:
    async def story() -> None:
        ledger = make_ledger(registry, calendar)
        await ledger.learn(USER)
        use(ledger, 10, 20)
        november, calendar.now = calendar.now, datetime(2026, 12, 1, tzinfo=UTC)
        use(ledger, 1, 2)
        assert ledger.month_tokens("acme") == 3
        calendar.now = november
        assert ledger.month_tokens("acme") == 30
        for _ in range(2):
            await ledger.flush()
            await ledger.learn(USER)
            assert ledger.month_tokens("acme") == 30
        assert not ledger._unwritten.months

    run(story())


def test_what_other_servers_write_is_seen_within_a_minute(registry: Registry, calendar: Calendar) -> None:
    seconds = [0.0]

    async def story() -> None:
        ledger = make_ledger(registry, calendar, clock=lambda: seconds[-1])
        await ledger.learn(USER)
        await _write(make_ledger(registry, calendar), 10)
        for now, tokens in ((59.0, 0), (61.0, 10)):
            seconds.append(now)
            await ledger.learn(USER)
            assert ledger.month_tokens("acme") == tokens

    run(story())


def test_a_month_is_read_for_those_alone_who_have_a_limit(registry: Registry, calendar: Calendar) -> None:
    async def story() -> None:
        ledger = make_ledger(registry, calendar)
        registry.close()
        await ledger.learn(Caller("ghosts", USER.scopes, "user"))
        with pytest.raises((NotFoundError, StorageError)):
            await ledger.learn(Caller("ghosts", USER.scopes, "user", limits=USER.limits))

    run(story())


async def _write(ledger: Ledger, tokens: int) -> None:
    use(ledger, tokens, 0)
    await ledger.flush()


# --- over HTTP --------------------------------------------------------------------------------------------------------


def test_the_ledger_says_what_the_metrics_say(make_world: Callable[..., World]) -> None:
    world = make_world(ledger_seconds=0.05)
    world.publish("acme", "support", seed=1)
    for fields in ({}, {"stream": True}, {"n": 3}, {"stream": True, "n": 2, "max_tokens": 4}, {"max_tokens": 10**6}):
        world.ask("support", **fields)
        world.ask(**fields)
    world.ask("nobody")
    connection = send_chat(world, stream=True, max_tokens=1500)
    connection.getresponse().readline()
    world.close_gate()
    hang_up(connection)
    gone = 'lorikeet_requests_total{adapter="support",outcome="client_gone"'
    wait_until(lambda: world.metric(gone) == 1)
    requests = 'lorikeet_requests_total{adapter="'
    wait_until(lambda: sum(row.requests for row in rows(world.registry)) == world.metric(requests) == 12)
    wait_until(lambda: sum(row.failed_requests for row in rows(world.registry)) == 3)
    wait_until(lambda: sum(row.aborted_requests for row in rows(world.registry)) == 1)

    def measured(kind: str, adapter: str) -> float:
        version = "1" if adapter == "support" else ""
        labels = f'adapter="{adapter}",kind="{kind}",tenant="acme",version="{version}"'
        return world.metric(f"lorikeet_tokens_total{{{labels}}}")

    for row in rows(world.registry, by=(UsageField.ADAPTER,)):
        assert row.adapter is not None
        assert row.prompt_tokens == measured("prompt", row.adapter)
        assert row.completion_tokens == measured("completion", row.adapter)
        assert row.cached_tokens == measured("cached", row.adapter)
        assert row.answered_requests == world.metric(
            f'lorikeet_time_to_first_token_seconds_count{{adapter="{row.adapter}"'
        )


def test_a_stream_that_its_engine_broke_is_one_failed_request_with_the_tokens_it_had(
    make_world: Callable[..., World],
) -> None:
    world = make_world(ledger_seconds=0.05)
    world.publish("acme", "support", seed=1)
    connection = send_chat(world, stream=True, max_tokens=1500)
    with connection.getresponse() as response:
        response.readline()
        world.live.call(_run(world.engine.kill))
        response.read()
    connection.close()
    wait_until(lambda: [row.requests for row in rows(world.registry)] == [1])
    (row,) = rows(world.registry)
    assert (row.failed_requests, row.aborted_requests, row.answered_requests) == (1, 0, 1)
    completion = 'lorikeet_tokens_total{adapter="support",kind="completion"'
    assert 0 < row.completion_tokens == world.metric(completion)


async def _run(action: Callable[[], None]) -> None:
    action()


def test_usage_is_read_over_http(make_world: Callable[..., World]) -> None:
    world = make_world(ledger_seconds=0.05)
    world.publish("acme", "support", seed=1)
    world.ask("support", max_tokens=5)
    world.ask(max_tokens=6, key="zoo")
    wait_until(lambda: total(world.registry)[0] == 2)
    today = datetime.now(UTC).date().isoformat()
    with world.client("platform") as platform, world.client("acme-admin") as admin:
        both = platform.get("/admin/v1/usage").json()
        own = admin.get("/admin/v1/usage", params={"since": today, "until": today}).json()
        key_ids = [row["key_id"] for row in both["data"]]
        assert own == {
            "data": [
                {
                    "day": today,
                    "tenant": "acme",
                    "adapter": "support",
                    "version": 1,
                    "key_id": key_ids[0],
                    "requests": 1,
                    "failed_requests": 0,
                    "prompt_tokens": 2,
                    "completion_tokens": 5,
                    "aborted_requests": 0,
                    "cached_tokens": 0,
                    "answered_requests": 1,
                    "first_token_ms": own["data"][0]["first_token_ms"],
                    "request_ms": own["data"][0]["request_ms"],
                    "mean_first_token_ms": own["data"][0]["first_token_ms"],
                    "mean_request_ms": own["data"][0]["request_ms"],
                }
            ],
            "next": None,
        }
        assert [row["tenant"] for row in both["data"]] == ["acme", "zoo"]
        assert platform.get("/admin/v1/usage", params={"tenant": "acme"}).json() == own
        assert platform.get("/admin/v1/usage", params={"adapter": "support"}).json() == own
        first = platform.get("/admin/v1/usage", params={"by": ["tenant", "day"], "limit": 1}).json()
        after = {"by": ["tenant", "day"], "limit": 1, "after": first["next"]}
        assert platform.get("/admin/v1/usage", params=after).json()["data"][0]["tenant"] == "zoo"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("since=86400", "invalid_request"),
        ("since=2026-13-01", "invalid_request"),
        ("since=2026-01-02&until=2026-01-01", "invalid_days"),
        ("since=20260101", "invalid_request"),
        ("by=secret", "invalid_request"),
        ("after=x", "invalid_cursor"),
        ("limit=0", "invalid_limit"),
        ("day=2026-01-01", "invalid_request"),
    ],
)
def test_a_query_that_means_nothing_is_refused(world: World, query: str, code: str) -> None:
    with world.client("acme-admin") as admin:
        answer = admin.get(f"/admin/v1/usage?{query}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_who_asks_what_was_granted_to_it_has_used_it_and_not_its_owner(make_world: Callable[..., World]) -> None:
    world = make_world(ledger_seconds=0.05)
    world.publish("acme", "support", seed=1)
    world.registry.grants.give(OPERATOR, "acme", "support", "zoo")
    assert world.ask("acme/support", key="zoo").status_code == 200
    wait_until(lambda: bool(rows(world.registry)))
    assert [(row.tenant, row.adapter, row.version) for row in rows(world.registry)] == [("zoo", "acme/support", 1)]
