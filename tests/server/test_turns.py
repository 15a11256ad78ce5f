"""Turns and slots are shared: by weight, by priority, by rotation, and the queue is bounded."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import OverloadedError
from server.shares import Asker
from server.turns import MAX_RETRY_SECONDS
from tests.server.queueing import Scene, run, settle

ACME, ZOO = Asker("acme"), Asker("zoo")
ACME_A, ACME_B, ZOO_B, ZOO_C = Asker("acme", "A"), Asker("acme", "B"), Asker("zoo", "B"), Asker("zoo", "C")
PROBE = Asker("acme", "A", max_tokens=0, is_probe=True)


# --- places


def test_whoever_comes_when_there_is_room_does_not_wait() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("a1", ACME_A)
        await scene.ask("a2", ACME_A)
        assert (scene.begun, scene.turns.sequences, scene.turns.queued) == (["a1", "a2"], 2, 0)
        await scene.ask("a3", ACME_A)
        assert (scene.turns.sequences, scene.turns.queued) == (2, 1)

    run(story, capacity=2)


def test_a_request_for_the_base_needs_no_slot() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("a", ACME_A)
        await scene.ask("b", ZOO_B)
        await scene.ask("base", ZOO)
        assert scene.begun == ["a", "base"]

    run(story, capacity=3, slots=1)


def test_a_request_of_many_sequences_is_not_overtaken() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("a1", ACME)
        await scene.ask("a2", ACME)
        await scene.ask("a3", ACME)
        await scene.ask("big", replace(ZOO, sequences=3))
        await scene.ask("small", replace(ACME, tenant="bee"))
        await scene.end("a1", "a2")
        assert scene.begun == ["a1", "a2", "a3"]
        await scene.end("a3")
        assert scene.begun == ["a1", "a2", "a3", "big"]
        await scene.end("big")
        assert scene.begun[-1] == "small"

    run(story, capacity=3)


def test_a_request_larger_than_the_engine_has_its_turn_alone() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("huge", replace(ACME, sequences=50))
        await scene.ask("a", ZOO)
        assert (scene.begun, scene.turns.sequences) == (["huge"], 4)
        await scene.end("huge")
        assert scene.begun == ["huge", "a"]

    run(story, capacity=4)


def test_spare_room_is_there_while_half_is_free_and_nobody_waits() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("a1", ACME_A)
        assert scene.turns.has_spare_room
        await scene.ask("b", ZOO_B)
        assert (scene.turns.queued, scene.turns.has_spare_room) == (1, False)
        await scene.hang_up("b")
        await scene.ask("a2", ACME_A)
        assert not scene.turns.has_spare_room

    run(story, capacity=4, slots=1)


# --- whose turn it is


def test_the_tenant_that_was_served_less_is_next() -> None:
    async def story(scene: Scene) -> None:
        for name in ("a1", "a2", "a3", "a4", "z1", "z2"):
            await scene.ask(name, ACME if name[0] == "a" else ZOO, tokens=10)
        for name in ("a1", "z1", "a2", "z2", "a3"):
            await scene.end(name)
        assert scene.begun == ["a1", "z1", "a2", "z2", "a3", "a4"]

    run(story, capacity=1)


def test_a_tenants_own_requests_are_served_as_they_came() -> None:
    async def story(scene: Scene) -> None:
        for name, asker in (("1", ACME_A), ("2", ACME_B), ("3", ACME_A), ("4", ACME), ("5", ACME_B)):
            await scene.ask(name, asker)
        await scene.end("1", "2", "3", "4")
        assert scene.begun == ["1", "2", "3", "4", "5"]

    run(story, capacity=1, slots=2)


def test_a_lower_priority_number_goes_before_all_others() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("z1", ZOO, tokens=1000)
        await scene.ask("a1", replace(ACME, priority=1))
        await scene.ask("z2", ZOO)
        await scene.ask("z3", ZOO)
        await scene.end("z1", "z2", "z3")
        assert scene.begun == ["z1", "z2", "z3", "a1"]

    run(story, capacity=1)


def test_weights_share_the_tokens() -> None:
    async def story(scene: Scene) -> None:
        for index in range(4):
            await scene.ask(f"a{index}", replace(ACME, weight=2), tokens=50, seconds=1, again=True)
            await scene.ask(f"z{index}", ZOO, tokens=20, seconds=0.5, again=True)
        await scene.pass_seconds(200)
        assert scene.used["acme"] / scene.used["zoo"] == pytest.approx(2, rel=0.05)

    run(story, capacity=3)


def test_nobody_saves_up_turns_while_it_asks_nothing() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("a", ACME, tokens=50, seconds=1, again=True)
        await scene.ask("b", replace(ACME, tenant="bee"), tokens=50, seconds=1, again=True)
        await scene.pass_seconds(100)
        before = scene.used["acme"]
        for index in range(20):
            await scene.ask(f"z{index}", ZOO, tokens=50, seconds=1)
        await scene.pass_seconds(30)
        assert scene.used["acme"] - before >= 9 * 100

    run(story, capacity=1)


def test_nobody_loses_by_asking_nothing_for_a_while_what_it_took_too_much_of() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("z1", ZOO)
        await scene.ask("a1", ACME)
        await scene.ask("z2", ZOO)
        scene.running["z1"].use(0, 10_000)
        await scene.hang_up("z2")
        await scene.end("z1")
        await scene.ask("z3", ZOO)
        await scene.ask("a2", ACME)
        await scene.end("a1")
        assert scene.begun == ["z1", "a1", "a2"]

    run(story, capacity=1)


def test_a_noisy_tenant_leaves_room_for_what_another_lately_had_in_hand() -> None:
    async def story(scene: Scene) -> None:
        for index in range(3):
            await scene.ask(f"z{index}", ZOO, tokens=10)
        for index in range(30):
            await scene.ask(f"a{index}", ACME, tokens=10, seconds=1, again=True)
        await scene.end("z0", "z1", "z2")
        await scene.pass_seconds(2)
        begun = len(scene.begun)
        await scene.ask("z3", ZOO)
        await scene.ask("z4", ZOO)
        assert scene.begun[begun:] == ["z3", "z4"]

    run(story, capacity=10)


def test_the_room_for_a_tenant_that_stopped_to_ask_is_given_up() -> None:
    async def story(scene: Scene) -> None:
        for index in range(4):
            await scene.ask(f"z{index}", ZOO, tokens=10)
        for index in range(30):
            await scene.ask(f"a{index}", ACME, tokens=10, seconds=1, again=True)
        await scene.end("z0", "z1", "z2", "z3")
        await scene.pass_seconds(1)
        assert scene.turns.sequences < 10
        await scene.pass_seconds(90)
        assert scene.turns.sequences == 10

    run(story, capacity=10)


# --- slots


def test_an_adapter_that_waited_two_seconds_gets_the_slot_before_its_holders_next_requests() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("a1", ACME_A)
        await scene.ask("b1", ZOO_B)
        scene.now = 1.9
        await scene.ask("a2", ACME_A)
        assert scene.begun == ["a1", "a2"]
        await scene.end("a1")
        scene.now = 2.0
        await scene.ask("a3", ACME_A)
        await scene.end("a2")
        assert scene.begun == ["a1", "a2", "b1"]

    run(story)


@pytest.mark.parametrize("newcomer", [ACME_B, ZOO_B], ids=["of the same tenant", "of another"])
@pytest.mark.parametrize("slots", [1, 3])
def test_an_adapter_waits_two_seconds_and_the_longest_answer_in_flight_at_most(slots: int, newcomer: Asker) -> None:
    async def story(scene: Scene) -> None:
        for slot in range(slots):
            for index, seconds in enumerate((0.5, 1.3, 3.0)):
                asker = replace(ACME_A, adapter=f"A{slot}")
                await scene.ask(f"a{slot}{index}", asker, tokens=10, seconds=seconds, again=True)
        await scene.pass_seconds(10)
        await scene.ask("b", newcomer)
        await scene.pass_seconds(5.0)
        assert scene.waited["b"] <= 5.0

    run(story, capacity=12, slots=slots)


def test_an_adapter_that_has_just_got_a_slot_takes_along_what_waits_of_its_own() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("a1", ACME_A)
        for name, asker in (("b1", ZOO_B), ("b2", ZOO_B), ("b3", ZOO_B), ("c", ZOO_C)):
            await scene.ask(name, asker)
        scene.now = 3
        await scene.ask("a2", ACME_A)
        await scene.end("a1")
        assert scene.begun == ["a1", "b1", "b2", "b3"]

    run(story, capacity=4)


def test_an_adapter_that_lost_its_slot_waits_for_two_seconds_again() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("a1", ACME_A)
        await scene.ask("b1", ZOO_B)
        scene.now = 2.5
        await scene.ask("a2", ACME_A)
        await scene.end("a1")
        scene.now = 4.4
        await scene.ask("b2", ZOO_B)
        assert scene.begun == ["a1", "b1", "b2"]
        scene.now = 4.5
        await scene.ask("b3", ZOO_B)
        assert scene.begun == ["a1", "b1", "b2"]

    run(story, capacity=4)


def test_many_adapters_that_wait_still_fill_the_places() -> None:
    async def story(scene: Scene) -> None:
        for index in range(20):
            for each in range(4):
                asker = Asker(f"tenant-{index}", f"A{index}")
                await scene.ask(f"{index}-{each}", asker, tokens=10, seconds=1 + each / 10, again=True)
        await scene.pass_seconds(20)
        begun = len(scene.begun)
        await scene.pass_seconds(100)
        answered = len(scene.begun) - begun
        assert answered >= 0.75 * 8 * 100 / 1.15

    run(story, capacity=8, slots=4)


def test_each_of_many_adapters_gets_its_turn() -> None:
    async def story(scene: Scene) -> None:
        for index in range(20):
            await scene.ask(f"{index}:", Asker("acme", f"A{index}"), tokens=10, seconds=1, again=True)
            await scene.ask(f"{index}.", Asker("acme", f"A{index}"), tokens=10, seconds=1, again=True)
        await scene.pass_seconds(60)
        answered = [sum(name.startswith((f"{index}:", f"{index}.")) for name in scene.begun) for index in range(20)]
        assert min(answered) >= 0.5 * max(answered)

    run(story, capacity=4, slots=2)


def test_a_tenant_of_many_adapters_does_not_drive_others_from_their_slots() -> None:
    async def story(scene: Scene) -> None:
        for index in range(20):
            await scene.ask(f"noisy-{index}", Asker("noisy", f"N{index}"), tokens=50, seconds=1, again=True)
        await scene.ask("a1", ACME_A, tokens=5, seconds=1, again=True)
        await scene.ask("a2", ACME_A, tokens=5, seconds=1, again=True)
        await scene.pass_seconds(10)
        asked = sum(name.startswith("a") for name in scene.begun)
        await scene.pass_seconds(20)
        assert sum(name.startswith("a") for name in scene.begun) - asked >= 2 * 19

    run(story, capacity=8, slots=4)


# --- probes


def test_a_probe_for_the_adapter_of_a_turn_waits_for_nothing() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("a1", ACME_A)
        await scene.ask("a2", ACME_A)
        await scene.ask("b", ZOO_B)
        scene.now = 10
        await scene.ask("probe", PROBE)
        assert scene.begun == ["a1", "probe"]
        assert scene.turns.sequences == 1
        await scene.end("probe")

    run(story, capacity=1, slots=1)


def test_a_probe_gets_the_next_free_slot_and_needs_no_place() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("b", ZOO_B)
        await scene.ask("base", ZOO)
        await scene.ask("c", ZOO_C)
        await scene.ask("probe", PROBE)
        await scene.end("b")
        assert scene.begun == ["b", "base", "probe"]

    run(story, capacity=2, slots=1)


def test_a_probe_that_waited_two_seconds_closes_the_slots() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("b1", ZOO_B)
        await scene.ask("probe", PROBE)
        scene.now = 2
        await scene.ask("b2", ZOO_B)
        await scene.end("b1")
        assert scene.begun == ["b1", "probe"]

    run(story, capacity=2, slots=1)


# --- whoever leaves


@pytest.mark.parametrize("asker", [ACME_A, ACME, replace(ACME_A, sequences=3), PROBE])
def test_a_hang_up_in_the_queue_gives_everything_back(asker: Asker) -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("z", ZOO_B)
        await scene.ask("a", asker)
        await scene.hang_up("a")
        await scene.end("z")
        assert scene.is_empty

    run(story, capacity=1)


@pytest.mark.parametrize("asker", [ACME_B, ACME, replace(ACME_B, sequences=3), replace(PROBE, adapter="B")])
def test_a_hang_up_in_the_very_step_of_its_turn_gives_everything_back(asker: Asker) -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("z", Asker("zoo", "Z"))
        await scene.ask("a", asker)
        scene.ends["z"].set()
        while not scene.tasks["z"].done():  # noqa: ASYNC110  — to the very step
            await asyncio.sleep(0)
        scene.tasks["a"].cancel()
        await settle()
        assert scene.begun == ["z"]
        await scene.ask("next", ZOO_C)
        assert scene.begun == ["z", "next"]

    run(story, capacity=1)


def test_what_a_hang_up_held_back_begins() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("a1", ACME)
        await scene.ask("big", replace(ZOO, sequences=2))
        await scene.ask("a2", ACME)
        assert scene.begun == ["a1"]
        await scene.hang_up("big")
        assert scene.begun == ["a1", "a2"]

    run(story, capacity=2)


def test_patience_ends_with_a_word_of_when_to_come_back() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("a", ACME)
        await scene.ask("z", ZOO)
        await asyncio.wait([scene.tasks["z"]])
        assert scene.refused["z"].code == "queue_timeout"
        assert 1 <= int(scene.refused["z"].headers["retry-after"]) <= MAX_RETRY_SECONDS
        assert scene.turns.queued == 0

    run(story, capacity=1, patience_seconds=0.01)


# --- a queue that is full


def test_the_longest_in_a_full_queue_gives_way_to_who_has_less_in_it() -> None:
    async def story(scene: Scene) -> None:
        for name in ("a0", "a1", "a2", "a3"):
            await scene.ask(name, ACME, tokens=10)
        await scene.ask("z1", ZOO)
        assert list(scene.refused) == ["a3"]
        assert scene.refused["a3"].code == "server_overloaded"
        assert scene.turns.queued == 3
        await scene.end("a0")
        assert scene.begun == ["a0", "z1"]

    run(story, capacity=1, max_queued=3)


def test_the_newcomer_with_most_in_a_full_queue_is_refused() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("a0", ACME)
        for name in ("a1", "z1", "a2", "z2", "z3"):
            await scene.ask(name, ACME if name[0] == "a" else ZOO)
        assert list(scene.refused) == ["z3"]
        assert int(scene.refused["z3"].headers["retry-after"]) >= 1

    run(story, capacity=1, max_queued=4)


def test_who_would_be_refused_can_be_told_before_it_asks() -> None:
    async def story(scene: Scene) -> None:
        for name in ("a0", "a1", "a2"):
            scene.turns.check_room(ACME)
            await scene.ask(name, ACME)
        scene.turns.check_room(ZOO)
        with pytest.raises(OverloadedError, match="queue is full") as refused:
            scene.turns.check_room(ACME)
        assert refused.value.code == "server_overloaded"
        assert "retry-after" in refused.value.headers

    run(story, capacity=1, max_queued=2)


def test_tenants_with_about_as_much_in_a_full_queue_do_not_turn_each_other_away() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("a0", ACME)
        for name in ("a1", "a2", "a3", "z1", "z2"):
            await scene.ask(name, ACME if name[0] == "a" else ZOO)
        assert list(scene.refused) == ["z2"]

    run(story, capacity=1, max_queued=4)


def test_a_tenant_of_more_weight_may_have_more_in_the_queue() -> None:
    async def story(scene: Scene) -> None:
        heavy = replace(ACME, weight=4)
        await scene.ask("a0", heavy)
        for name in ("z1", "z2", "z3", "a1", "a2", "a3", "a4"):
            await scene.ask(name, heavy if name[0] == "a" else ZOO)
        assert list(scene.refused) == ["z3"]

    run(story, capacity=1, max_queued=6)


def test_a_full_queue_takes_the_more_important_instead() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("a0", ACME)
        await scene.ask("z1", replace(ZOO, priority=1))
        await scene.ask("a1", ACME)
        await scene.ask("a2", ACME)
        await scene.ask("z2", replace(ZOO, priority=1))
        assert list(scene.refused) == ["z1", "z2"]

    run(story, capacity=1, max_queued=2)


def test_a_probe_is_neither_refused_nor_turned_away() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("a0", ACME_B)
        await scene.ask("probe", PROBE)
        await scene.ask("a1", ACME_B)
        await scene.ask("z1", ZOO)
        await scene.ask("probe2", PROBE)
        assert "probe" not in scene.refused
        assert "probe2" not in scene.refused

    run(story, capacity=1, max_queued=1)


def test_no_more_wait_than_are_likely_to_be_served_in_half_of_the_patience() -> None:
    async def story(scene: Scene) -> None:
        for index in range(8):
            await scene.ask(f"a{index}", ACME, tokens=5, seconds=1, again=True)
        await scene.pass_seconds(50)  # two turns end each second
        for index in range(100):
            await scene.ask(f"z{index}", ZOO)
        assert scene.turns.queued == pytest.approx(20, abs=2)
        assert all(int(error.headers["retry-after"]) in range(9, 17) for error in scene.refused.values())

    run(story, capacity=2, patience_seconds=20)


def test_the_time_before_anybody_waited_says_nothing_of_the_pace() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask("a", ACME)
        await scene.pass_seconds(10_000)
        await scene.ask("b", ACME, seconds=1, again=True)
        await scene.ask("c", ACME, seconds=1, again=True)
        await scene.end("a")
        await scene.pass_seconds(50)
        assert scene.turns._pace == pytest.approx(1, rel=0.1)

    run(story, capacity=1)


# --- anything at all


askers = st.builds(
    Asker,
    tenant=st.sampled_from(["acme", "bee", "zoo"]),
    adapter=st.none() | st.sampled_from("ABCD"),
    sequences=st.sampled_from([1, 1, 1, 2, 7]),
    prompt_tokens=st.integers(0, 20),
    max_tokens=st.none() | st.integers(1, 100),
    weight=st.integers(1, 3),
    priority=st.sampled_from([0, 0, 0, 1]),
) | st.builds(Asker, tenant=st.just("acme"), adapter=st.sampled_from("ABE"), is_probe=st.sampled_from([True]))
steps = st.lists(
    st.tuples(st.just("ask"), askers)
    | st.tuples(st.sampled_from(["end", "hang up", "end and hang up"]), st.integers(0, 50))
    | st.tuples(st.just("pass"), st.floats(0, 3)),
    max_size=40,
)


@given(steps=steps, capacity=st.integers(1, 4), slots=st.integers(1, 3), max_queued=st.integers(1, 8))
def test_whatever_happens_no_more_run_than_may_and_nothing_is_left(
    steps: list[tuple[str, object]], capacity: int, slots: int, max_queued: int
) -> None:
    async def story(scene: Scene) -> None:
        for number, (verb, what) in enumerate(steps):
            live = [name for name, task in scene.tasks.items() if not task.done()]
            running = [name for name in live if name in scene.running]
            match verb, what:
                case "ask", Asker() as asker:
                    await scene.ask(str(number), asker, tokens=number)
                case "end", int() as index if running:
                    await scene.end(running[index % len(running)])
                case "hang up", int() as index if live:
                    await scene.hang_up(live[index % len(live)])
                case "end and hang up", int() as index if running:
                    scene.ends[running[0]].set()
                    await asyncio.sleep(0)
                    scene.tasks[live[index % len(live)]].cancel()
                    await settle()
                case "pass", float() as seconds:
                    await scene.pass_seconds(seconds)
            check(scene, capacity, slots, max_queued)

    run(story, capacity=capacity, slots=slots, max_queued=max_queued)


def check(scene: Scene, capacity: int, slots: int, max_queued: int) -> None:
    turns = scene.turns
    askers_ = [turn.asker for turn in scene.running.values()]
    assert turns.sequences == sum(min(one.sequences, capacity) for one in askers_ if not one.is_probe) <= capacity
    assert {one.adapter for one in askers_ if one.adapter} == turns._slots.held
    assert len(turns._slots.held) <= slots
    assert turns.queued <= max_queued
    assert all(share.served >= 0 for share in turns._shares._shares.values())
    # No idle place while somebody could have it, save those that are kept for a larger one or for a starved adapter.
    if not turns._slots.starved():
        waiting = [queue[0].asker for share in turns._shares.waiting() for queue in share.queues.values()]
        admissible = [one for one in waiting if turns._slots.can_take(one.adapter)]
        largest = max((min(one.sequences, capacity) for one in admissible), default=0)
        # Or for what another tenant lately had.
        kept = 2 * (capacity // 5) if len(turns._usual) > 1 else 0
        assert not admissible or turns.sequences + largest > capacity - kept
    assert not any(turns._slots.can_take(probe.asker.adapter) for probe in turns._probes)
