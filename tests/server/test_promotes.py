"""A promote under load: no request fails, none is answered by a mixture, and the new version answers afterwards."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.server.uploading import as_multipart, files_of
from tests.server.world import World, in_thread, wait_until

CALLERS = 4
MIN_ANSWERS = 12


def test_no_request_fails_or_is_mixed_while_versions_change(world: World) -> None:
    marks = {}
    for number in (1, 2, 3):
        world.publish("acme", "support", seed=number, promote=number == 1)
        marks[f"acme/support@{number}"] = world.answer_marks(f"support@{number}")
    answers: list[tuple[str, set[str]]] = []
    is_over = threading.Event()

    def call() -> None:
        with world.openai() as client:
            while not is_over.is_set():
                chat = client.chat.completions.with_raw_response.create(
                    model="support", messages=[{"role": "user", "content": "hi"}], stream=True, max_tokens=20
                )
                words = "".join(chunk.choices[0].delta.content or "" for chunk in chat.parse())
                answers.append((chat.headers["x-lorikeet-adapter"], world.marks(words)))

    callers = [in_thread(call) for _ in range(CALLERS)]
    with world.client("acme-admin") as admin:
        for number in (2, 3, 1, 2):
            before = len(answers)
            wait_until(lambda before=before: len(answers) >= before + MIN_ANSWERS)  # type: ignore[misc]
            path = "/admin/v1/tenants/acme/adapters/support/aliases/live"
            assert admin.put(path, json={"version": number}).status_code == 200
            assert world.answer_marks("support") == marks[f"acme/support@{number}"]
    is_over.set()
    for caller in callers:
        caller()
    assert all(said == marks[label] for label, said in answers)
    assert {label for label, _ in answers} == set(marks)


def test_a_promote_makes_the_version_resident_before_it_is_asked(world: World) -> None:
    world.publish("acme", "support", seed=1, promote=False)
    assert _point(world, 1).status_code == 200
    assert world.residency() == {"acme/support@1": 0}


def test_a_version_that_the_probe_refuses_is_not_promoted(world: World) -> None:
    world.publish("acme", "support", seed=1)
    world.publish("acme", "support", seed=2, promote=False, is_probed=False)
    world.engine.samples_nan = True
    response = _point(world, 2)
    assert (response.status_code, response.json()["error"]["code"]) == (409, "version_not_ready")
    assert _point(world, 2).json()["error"]["code"] == "version_not_ready"
    assert world.ask("support").headers["x-lorikeet-adapter"] == "acme/support@1"


def test_a_version_that_cannot_be_loaded_now_is_promoted_another_time(world: World) -> None:
    world.publish("acme", "support", seed=1, promote=False, is_probed=False)
    world.engine.refuses_loads = True
    response = _point(world, 1)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "adapter_unavailable")
    world.engine.refuses_loads = False
    assert _point(world, 1).status_code == 200


def test_promotes_and_uploads_of_what_was_never_probed_wait_for_a_slot_and_hold_no_place_meanwhile(
    make_world: Callable[..., World],
) -> None:
    world = make_world(max_loras=1, max_cpu_loras=2)
    world.publish("zoo", "hot", seed=1)
    world.publish("zoo", "cold", seed=2)
    for number in (3, 4):
        world.publish("acme", "support", seed=number, promote=False, is_probed=False)
    world.close_gate()
    hot = in_thread(lambda: world.ask("hot", key="zoo"))
    wait_until(lambda: world.residency() == {"zoo/hot@1": 1})
    promotes = [in_thread(lambda number=number: _point(world, number)) for number in (1, 2)]  # type: ignore[misc]
    upload = in_thread(lambda: _upload(world, seed=5))
    cold = in_thread(lambda: world.ask("cold", key="zoo"))
    wait_until(lambda: {"acme/support@1", "acme/support@2", "zoo/hot@1"} <= world.residency().keys())
    world.open_gate()
    assert [wait().status_code for wait in (hot, *promotes, upload, cold)] == [200, 200, 200, 201, 200]


def test_a_promote_gets_its_probe_while_others_ask_without_end(make_world: Callable[..., World]) -> None:
    world = make_world(max_loras=1, max_cpu_loras=3, max_num_seqs=1)
    world.publish("zoo", "hot", seed=1)
    world.publish("acme", "support", seed=2, promote=False, is_probed=False)
    is_over = threading.Event()

    def ask_on() -> set[int]:
        statuses = set()
        while not is_over.is_set():
            statuses.add(world.ask("hot", key="zoo").status_code)
        return statuses

    callers = [in_thread(ask_on) for _ in range(CALLERS)]
    try:
        assert _point(world, 1).status_code == 200
    finally:
        is_over.set()
    assert [caller() for caller in callers] == [{200}] * CALLERS


def test_two_admins_that_promote_from_the_same_revision_do_not_overwrite_each_other(world: World) -> None:
    for number in (1, 2):
        world.publish("acme", "support", seed=number, promote=False)
    etag = _point(world, 1).headers["etag"]
    assert _point(world, 2, etag).status_code == 200
    late = _point(world, 1, etag)
    assert (late.status_code, late.json()["error"]["code"]) == (412, "version_conflict")
    assert _point(world, 1, "rubbish").status_code == 400


def test_a_roll_back_returns_to_the_version_before(world: World) -> None:
    for number in (1, 2):
        world.publish("acme", "support", seed=number)
    with world.client("acme-admin") as admin:
        back = admin.post("/admin/v1/tenants/acme/adapters/support/rollback")
        assert (back.status_code, back.json()["version"]) == (200, 1)
        assert world.ask("support").headers["x-lorikeet-adapter"] == "acme/support@1"
        again = admin.post("/admin/v1/tenants/acme/adapters/support/rollback")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "nothing_to_roll_back")


def test_a_retired_version_leaves_the_engine_and_finishes_what_runs(world: World) -> None:
    for number in (1, 2):
        world.publish("acme", "support", seed=number, promote=number == 2)
    world.close_gate()
    running = in_thread(lambda: world.ask("support@1"))
    wait_until(lambda: world.residency().get("acme/support@1") == 1)
    with world.client("acme-admin") as admin:
        assert admin.delete("/admin/v1/tenants/acme/adapters/support/versions/1").json()["state"] == "retired"
        assert admin.delete("/admin/v1/tenants/acme/adapters/support/versions/2").status_code == 409
    assert world.ask("support@1").status_code == 404
    assert world.residency() == {"acme/support@1": 1}
    world.open_gate()
    assert running().status_code == 200
    wait_until(lambda: world.residency() == {})


def _upload(world: World, seed: int) -> Any:
    with world.client("acme-admin") as admin:
        path = "/admin/v1/tenants/acme/adapters/uploaded/versions"
        return admin.post(path, **as_multipart(files_of(world.make_folder(seed))))


def _point(world: World, number: int, etag: str | None = None) -> Any:
    with world.client("acme-admin") as admin:
        path = "/admin/v1/tenants/acme/adapters/support/aliases/live"
        return admin.put(path, json={"version": number}, headers={"if-match": etag} if etag else {})


@pytest.mark.parametrize(
    ("revision", "status"), [(2**31 - 1, 412), (2**31, 400), (9_999_999_999, 400), (10_000_000_000, 400)]
)
def test_a_revision_may_be_as_large_as_there_are_any(world: World, revision: int, status: int) -> None:
    world.publish("acme", "support", seed=1)
    assert _point(world, 1, f'"{revision}"').status_code == status
