"""When an engine counts as hung, and what ready means: judged from what can be seen of it, on a clock of the test's."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.fake import FakeEngine
from server.engine.protocol import Health, Vitals
from server.in_flight import InFlight
from server.liveness import LOOK_SECONDS, Liveness
from tests.server.world import World, wait_until

STALL_SECONDS, STEP_SECONDS = 10, 120
WORKING = Vitals(has_work=True, stepped_at=1, cpu_seconds=0)


class Seen(FakeEngine):
    """An engine of which is seen what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = WORKING

    def vitals(self) -> Vitals:
        return self.seen

    def health(self) -> Health:
        return Health.READY


def seconds_until_lost(seen: Callable[[float], Vitals], *, longest: float = 200) -> float | None:
    """Looks twice a second at what `seen` says for that second."""
    engine, in_flight = Seen(), InFlight()
    liveness = Liveness(
        engine, in_flight, stall_seconds=STALL_SECONDS, step_seconds=STEP_SECONDS, heartbeat_seconds=1e9
    )
    for now in _looks(longest):
        engine.seen = seen(now)
        liveness.look(1000 + now)
        if in_flight.is_lost:
            return now
    return None


def _looks(seconds: float) -> Iterable[float]:
    return (LOOK_SECONDS * look for look in range(int(seconds / LOOK_SECONDS)))


def test_one_that_is_asleep_over_its_work_hangs() -> None:
    lost = seconds_until_lost(lambda _now: WORKING)
    assert lost is not None
    assert STALL_SECONDS <= lost <= STALL_SECONDS + 1


def test_timers_that_tick_are_no_work() -> None:
    lost = seconds_until_lost(lambda now: replace(WORKING, cpu_seconds=0.005 * now))
    assert lost is not None
    assert lost < STALL_SECONDS + 1


def test_one_that_computes_has_longer() -> None:
    lost = seconds_until_lost(lambda now: replace(WORKING, cpu_seconds=0.5 * now))
    assert lost is not None
    assert STEP_SECONDS <= lost <= STEP_SECONDS + 1


def test_one_that_waits_for_a_disk_has_longer() -> None:
    assert (seconds_until_lost(lambda _now: replace(WORKING, is_at_disk=True)) or 0) >= STEP_SECONDS


def test_one_that_falls_asleep_after_a_while_hangs_from_then_on() -> None:
    lost = seconds_until_lost(lambda now: replace(WORKING, cpu_seconds=min(now, 30)))
    assert lost is not None
    assert 30 + STALL_SECONDS <= lost <= 32 + STALL_SECONDS


def test_one_that_is_stopped_is_seen_at_once_even_if_idle() -> None:
    lost = seconds_until_lost(lambda _now: Vitals(has_work=False, stepped_at=1, cpu_seconds=0, is_halted=True))
    assert lost is not None
    assert lost <= 1


def test_a_glance_of_a_debugger_is_no_halt() -> None:
    assert seconds_until_lost(lambda now: replace(WORKING, stepped_at=now, is_halted=now % 2 == 0)) is None


def test_an_idle_one_never_hangs() -> None:
    assert seconds_until_lost(lambda _now: replace(WORKING, has_work=False)) is None


@given(st.lists(st.floats(0.5, STALL_SECONDS - 1), min_size=1, max_size=20))
def test_one_that_steps_in_time_never_hangs(gaps: list[float]) -> None:
    steps = [sum(gaps[: index + 1]) for index in range(len(gaps))]

    def seen(now: float) -> Vitals:
        return replace(WORKING, stepped_at=1 + max((at for at in steps if at <= now), default=0))

    assert seconds_until_lost(seen, longest=steps[-1]) is None


def test_time_in_which_this_process_itself_was_stopped_does_not_count() -> None:
    engine, in_flight = Seen(), InFlight()
    liveness = Liveness(
        engine, in_flight, stall_seconds=STALL_SECONDS, step_seconds=STEP_SECONDS, heartbeat_seconds=1e9
    )
    for now in (0.0, 0.5, 3600.0, 3600.5):
        liveness.look(now)
    assert not in_flight.is_lost


@pytest.mark.parametrize(("working_share", "is_ready"), [(0.5, True), (0.0, False)])
def test_one_that_computes_a_long_step_is_ready(
    monkeypatch: pytest.MonkeyPatch, working_share: float, *, is_ready: bool
) -> None:
    engine = Seen()
    liveness = Liveness(engine, InFlight(), stall_seconds=STALL_SECONDS, step_seconds=STEP_SECONDS, heartbeat_seconds=5)
    for now in _looks(60):
        engine.seen = replace(WORKING, cpu_seconds=working_share * now)
        liveness.look(now)
    monkeypatch.setattr("server.liveness.monotonic", lambda: 60.0)
    assert liveness.is_ready() == is_ready


# --- on a server


@pytest.fixture
def database() -> str:
    """It plays no part."""
    return "sqlite"


def test_an_idle_engine_makes_a_token_now_and_then_which_is_nobodys(make_world: Callable[..., World]) -> None:
    world = make_world(heartbeat_seconds=0.2)
    wait_until(lambda: world.engine.vitals().stepped_at > 0)
    assert not world.engine.seen_bodies
    with world.client("platform") as client:
        lines = client.get("/metrics").text.splitlines()
    assert not [line for line in lines if line.startswith(("lorikeet_requests_total", "lorikeet_tokens_total"))]


def test_an_idle_engine_that_hangs_is_found_by_its_heartbeat(make_world: Callable[..., World]) -> None:
    world = make_world(heartbeat_seconds=0.2, stall_seconds=1)
    world.engine.stall()
    with world.client() as client:
        wait_until(lambda: client.get("/readyz").status_code == 503)
        refusal = client.get("/readyz")
    assert (refusal.json()["error"]["code"], refusal.headers["retry-after"]) == ("engine_unavailable", "2")


def test_ready_ends_when_no_token_was_made_lately_though_nothing_is_known_to_hang(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise ValueError("no tokenizer")

    world = make_world(heartbeat_seconds=0.2, stall_seconds=0.5)
    monkeypatch.setattr(world.engine, "sample", fail)
    with world.client() as client:
        wait_until(lambda: client.get("/readyz").status_code == 503)
        assert "made no token" in client.get("/readyz").json()["error"]["message"]
        assert world.ask().status_code == 200
        assert client.get("/readyz").is_success


def test_under_load_there_is_no_heartbeat(make_world: Callable[..., World]) -> None:
    world = make_world(heartbeat_seconds=0.2)
    world.close_gate()
    wait_until(lambda: sum(world.engine.running.values()) == 1)  # one heartbeat is in hand, and no second comes
    assert world.engine.running.total() == 1
