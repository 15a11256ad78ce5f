"""A split alias: each arm gets its share, and who asks twice meets the same arm."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import Arm, Caller, ConflictError, InvalidError, NotFoundError, ProbeVerdict, Registry, folder_members
from adapters.splits import choose
from tests.adapters.conftest import Publish
from tests.builders import make_adapter_folder, make_base

CANARY = (Arm(1, 90), Arm(2, 10))

weights = st.dictionaries(st.integers(1, 50), st.integers(1, 10_000), min_size=1, max_size=8)


@pytest.fixture(autouse=True)
def published(publish: Publish) -> None:
    for seed in (1, 2, 3):
        publish(seed=seed)


def test_each_arm_gets_its_share_of_the_callers() -> None:
    met = Counter(choose(CANARY, f"user-{number}", salt="1").version for number in range(10_000))
    assert 8800 < met[1] < 9200  # six standard deviations are 180


@given(weights, st.text(), st.text())
def test_the_same_caller_meets_the_same_arm_in_any_order(split: dict[int, int], sticky: str, salt: str) -> None:
    arms = [Arm(*arm) for arm in split.items()]
    assert choose(arms, sticky, salt=salt) == choose(arms[::-1], sticky, salt=salt)


@given(weights, st.text(), st.data())
def test_a_growing_arm_takes_callers_and_moves_nobody_between_the_others(
    split: dict[int, int], sticky: str, data: st.DataObject
) -> None:
    grown = data.draw(st.sampled_from(sorted(split)))
    before = choose([Arm(*arm) for arm in split.items()], sticky, salt="s")
    after = choose([Arm(*arm) for arm in {**split, grown: split[grown] * 2}.items()], sticky, salt="s")
    assert after.version in {before.version, grown}


def test_the_groups_of_two_adapters_are_not_the_same() -> None:
    users = [f"user-{number}" for number in range(300)]
    assert [choose(CANARY, user, salt="1") for user in users] != [choose(CANARY, user, salt="2") for user in users]


def test_a_request_through_a_split_alias_meets_both_versions(registry: Registry, admin: Caller, user: Caller) -> None:
    registry.aliases.promote(admin, "acme", "support", CANARY)
    met = {registry.resolve(user, "support", f"user-{number}").number for number in range(100)}
    again = {registry.resolve(user, "support", "user-1").number for _ in range(10)}
    assert (met, len(again)) == ({1, 2}, 1)


def test_without_a_sticky_key_any_arm_answers(registry: Registry, admin: Caller, user: Caller) -> None:
    registry.aliases.promote(admin, "acme", "support", [Arm(1, 1), Arm(2, 1)])
    assert {registry.resolve(user, "support").number for _ in range(100)} == {1, 2}


def test_an_arm_that_can_not_be_served_leaves_its_share_to_the_others(
    registry: Registry, admin: Caller, user: Caller
) -> None:
    registry.aliases.promote(admin, "acme", "support", [Arm(1, 1), Arm(2, 9)])
    rejected = registry.resolve(user, "support@2").version_id
    registry.versions.record_probe(Caller.server(), rejected, ProbeVerdict(is_accepted=False))
    assert {registry.resolve(user, "support", f"user-{number}").number for number in range(50)} == {1}


def test_a_split_of_which_nothing_can_be_served_is_not_found(registry: Registry, admin: Caller, user: Caller) -> None:
    registry.aliases.promote(admin, "acme", "support", [Arm(1, 1), Arm(2, 9)])
    for name in ("support@1", "support@2"):
        version_id = registry.resolve(user, name).version_id
        registry.versions.record_probe(Caller.server(), version_id, ProbeVerdict(is_accepted=False))
    with pytest.raises(NotFoundError):
        registry.resolve(user, "support", "user")


def test_every_arm_of_an_alias_is_in_use(registry: Registry, admin: Caller) -> None:
    registry.aliases.promote(admin, "acme", "support", CANARY)
    for number in (1, 2):
        with pytest.raises(ConflictError) as caught:
            registry.versions.retire(admin, "acme", "support", number)
        assert caught.value.code == "version_in_use"


def test_a_split_is_rolled_back_to_and_from(registry: Registry, admin: Caller) -> None:
    for to in (1, CANARY, 2):
        registry.aliases.promote(admin, "acme", "support", to)
    back = [registry.aliases.rollback(admin, "acme", "support").arms for _ in range(2)]
    assert back == [CANARY, (Arm(1, 1),)]


def test_a_rollback_passes_over_a_split_with_a_rejected_arm(registry: Registry, admin: Caller, user: Caller) -> None:
    for to in (1, (Arm(1, 1), Arm(3, 1)), 2):
        registry.aliases.promote(admin, "acme", "support", to)
    rejected = registry.resolve(user, "support@3").version_id
    registry.versions.record_probe(Caller.server(), rejected, ProbeVerdict(is_accepted=False))
    assert registry.aliases.rollback(admin, "acme", "support").arms == (Arm(1, 1),)


def test_the_same_split_again_is_no_move(registry: Registry, admin: Caller) -> None:
    first = registry.aliases.promote(admin, "acme", "support", CANARY)
    again = registry.aliases.promote(admin, "acme", "support", CANARY[::-1])
    assert first == again


def test_one_arm_is_no_split(registry: Registry, admin: Caller) -> None:
    assert registry.aliases.promote(admin, "acme", "support", [Arm(2, 70)]).version == 2


def test_the_history_tells_every_promotion(registry: Registry, admin: Caller) -> None:
    for to in (1, CANARY):
        registry.aliases.promote(admin, "acme", "support", to)
    registry.aliases.rollback(admin, "acme", "support")
    told = registry.aliases.history(admin, "acme", "support")
    assert [(move.arms, move.by) for move in told] == [(CANARY, "acme's admin"), ((Arm(1, 1),), "acme's admin")]


@pytest.mark.parametrize(
    "split",
    [
        [],
        [Arm(1, 1), Arm(1, 2)],
        [Arm(1, 0), Arm(2, 1)],
        [Arm(1, -1), Arm(2, 1)],
        [Arm(1, 10**9), Arm(2, 1)],
        [Arm(number, 1) for number in range(1, 10)],
        [Arm(1, 1.5), Arm(2, 1)],  # type: ignore[arg-type]
        [Arm(1, weight=True), Arm(2, 1)],
        [Arm(1, float("nan")), Arm(2, 1)],  # type: ignore[arg-type]
        [Arm(version=True, weight=1), Arm(2, 1)],
        [Arm("1", 1), Arm(2, 1)],  # type: ignore[arg-type]
        [Arm(1, 10**5000), Arm(2, 1)],
        True,
        1.0,
    ],
    ids=[
        *("nothing", "a version twice", "no weight", "a weight below zero", "a huge weight", "too many arms"),
        *("a half weight", "a bool", "NaN", "a bool for a version", "a text", "a number of 5000 digits"),
        *("a bool alone", "a float alone"),
    ],
)
def test_what_can_be_no_split_is_refused(registry: Registry, admin: Caller, split: Any) -> None:
    with pytest.raises(InvalidError) as caught:
        registry.aliases.promote(admin, "acme", "support", split)
    assert caught.value.code == "invalid_split"


@pytest.mark.parametrize("number", [99, 0, -1, 10**12, pytest.param(10**5000, id="huge")])
def test_a_split_with_a_version_that_is_not_there_is_refused(registry: Registry, admin: Caller, number: int) -> None:
    with pytest.raises(NotFoundError) as caught:
        registry.aliases.promote(admin, "acme", "support", [Arm(1, 1), Arm(number, 1)])
    assert caught.value.code == "version_not_found"


def test_a_split_is_between_versions_of_one_base(
    registry: Registry, admin: Caller, operator: Caller, tmp_path: Path
) -> None:
    other = make_base("other", layers=1)
    registry.bases.add(operator, other)
    members = folder_members(make_adapter_folder(tmp_path / "other", other))
    registry.versions.publish(operator, "acme", "support", members, base=other.fingerprint)
    with pytest.raises(ConflictError) as caught:
        registry.aliases.promote(admin, "acme", "support", [Arm(1, 1), Arm(4, 1)])
    assert caught.value.code == "split_mixed"
    assert registry.aliases.promote(admin, "acme", "support", 4).version == 4
