"""An alias that is split between versions: each caller meets one of them, and no answer is of two."""

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from adapters import Arm
from tests.server.administering import LIVE, SUPPORT, call, publish, split
from tests.server.world import OPERATOR, World, in_thread, wait_until

USERS = 200
CALLERS = 4
MIN_ANSWERS = 12


@pytest.fixture
def canary(world: World) -> World:
    """acme/support@live is version 1 for four callers of five, version 2 for the fifth."""
    publish(world, 2)
    assert call(world, "PUT", LIVE, json=split((1, 4), (2, 1))).status_code == 200
    return world


@pytest.fixture
def user_of_acme(canary: World) -> Iterator[httpx.Client]:
    """One client for many requests."""
    with canary.client() as client:
        yield client


def version_for(client: httpx.Client, prompt: str = "hi", **fields: Any) -> str:
    body = {"model": "support", "messages": [{"role": "user", "content": prompt}], "max_tokens": 1}
    answer = client.post("/v1/chat/completions", json=body | fields)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-lorikeet-adapter"]


def test_over_many_users_each_arm_gets_its_share_and_every_user_stays(user_of_acme: httpx.Client) -> None:
    users = [f"user-{number}" for number in range(USERS)]
    met = {user: version_for(user_of_acme, user=user) for user in users}
    shares = Counter(met.values())
    assert set(shares) == {"acme/support@1", "acme/support@2"}
    assert 0.1 * USERS <= shares["acme/support@2"] <= 0.3 * USERS
    assert {user: version_for(user_of_acme, user=user, prompt="something else") for user in users[:20]} == {
        user: met[user] for user in users[:20]
    }


def test_a_user_is_known_however_the_client_names_it(user_of_acme: httpx.Client) -> None:
    for number in range(8):
        user = f"user-{number}"
        said = ({"user": user}, {"safety_identifier": user}, {"metadata": {"user_id": user}})
        assert len({version_for(user_of_acme, **fields) for fields in said}) == 1


def test_without_a_user_the_same_request_meets_the_same_version_and_others_meet_both(
    user_of_acme: httpx.Client,
) -> None:
    prompts = [f"question {number}" for number in range(40)]
    met = [version_for(user_of_acme, prompt=prompt) for prompt in prompts]
    assert met == [version_for(user_of_acme, prompt=prompt) for prompt in prompts]
    assert len(set(met)) == 2


def test_each_endpoint_and_a_granted_tenant_meet_the_same_version(canary: World) -> None:
    canary.registry.grants.give(OPERATOR, "acme", "support", "zoo")
    for number in range(8):
        user = f"user-{number}"
        bodies: dict[str, dict[str, Any]] = {
            "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
            "/v1/completions": {"prompt": "hi"},
            "/v1/responses": {"input": "hi"},
        }
        with canary.client() as acme, canary.client("zoo") as zoo:
            met = {
                client.post(path, json=body | {"model": "acme/support", "user": user}).headers["x-lorikeet-adapter"]
                for path, body in bodies.items()
                for client in (acme, zoo)
            }
        assert len(met) == 1


def test_an_arm_whose_version_is_asked_by_number_is_always_that_version(canary: World) -> None:
    for number in (1, 2):
        assert canary.ask(f"support@{number}").headers["x-lorikeet-adapter"] == f"acme/support@{number}"


def test_no_request_fails_or_is_mixed_while_a_split_moves_and_is_rolled_back(world: World) -> None:
    publish(world, 3)
    marks = {f"acme/support@{number}": world.answer_marks(f"support@{number}") for number in (1, 2, 3)}
    answers: list[tuple[str, set[str]]] = []
    is_over = threading.Event()

    def ask_on(caller: int) -> None:
        with world.openai() as client:
            number = 0
            while not is_over.is_set():
                number += 1
                chat = client.chat.completions.with_raw_response.create(
                    model="support",
                    messages=[{"role": "user", "content": "hi"}],
                    user=f"{caller}-{number % 9}",
                    stream=True,
                    max_tokens=20,
                )
                words = "".join(chunk.choices[0].delta.content or "" for chunk in chat.parse())
                answers.append((chat.headers["x-lorikeet-adapter"], world.marks(words)))

    callers = [in_thread(lambda caller=caller: ask_on(caller)) for caller in range(CALLERS)]  # type: ignore[misc]
    moves = [split((1, 1), (2, 1)), split((1, 1), (2, 8)), {"version": 2}, split((2, 1), (3, 3))]
    for move in [*moves, None, None]:
        before = len(answers)
        wait_until(lambda before=before: len(answers) >= before + MIN_ANSWERS)  # type: ignore[misc]
        answer = call(world, "POST", f"{SUPPORT}/rollback") if move is None else call(world, "PUT", LIVE, json=move)
        assert answer.status_code == 200, answer.text
    is_over.set()
    for caller in callers:
        caller()
    assert all(said == marks[label] for label, said in answers)
    assert {label for label, _ in answers} == set(marks)


def test_an_arm_that_its_probe_refuses_leaves_its_callers_to_the_other(world: World) -> None:
    publish(world, 1)
    world.publish("acme", "support", seed=2, promote=False, is_probed=False)
    world.registry.aliases.promote(OPERATOR, "acme", "support", [Arm(1, 1), Arm(2, 9999)])
    world.engine.samples_nan = True
    assert world.ask("support").headers["x-lorikeet-adapter"] == "acme/support@1"
    assert world.registry.versions.get(OPERATOR, "acme", "support", 2).state == "rejected"


def test_the_metrics_tell_the_arms_apart(canary: World, user_of_acme: httpx.Client) -> None:
    met = Counter(version_for(user_of_acme, user=f"user-{number}") for number in range(40))
    for arm, answers in met.items():
        own = f'tenant="acme",version="{arm.rpartition("@")[2]}"}}'
        assert canary.metric(f'lorikeet_requests_total{{adapter="support",outcome="ok",{own}') == answers
        assert canary.metric(f'lorikeet_tokens_total{{adapter="support",kind="completion",{own}') == answers
        assert canary.metric(f'lorikeet_time_to_first_token_seconds_count{{adapter="support",{own}') == answers
