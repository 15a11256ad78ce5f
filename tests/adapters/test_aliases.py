"""Aliases move by promotion, and back by rollback."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from sqlalchemy import event

from adapters import Alias, Caller, ConflictError, InvalidError, NotFoundError, ProbeVerdict, Registry
from tests.adapters.conftest import Publish


@pytest.fixture
def _three_versions(publish: Publish) -> None:
    for seed in range(3):
        publish(seed=seed)


pytestmark = pytest.mark.usefixtures("_three_versions")


def test_a_bare_name_means_live_and_nothing_before_the_first_promotion(
    registry: Registry, admin: Caller, user: Caller
) -> None:
    with pytest.raises(NotFoundError):
        registry.resolve(user, "support")
    registry.aliases.promote(admin, "acme", "support", 2)
    assert registry.resolve(user, "support").number == 2
    assert registry.adapters.get(admin, "acme", "support").live_version == 2


def test_aliases_move_apart(registry: Registry, admin: Caller, user: Caller) -> None:
    registry.aliases.promote(admin, "acme", "support", 1)
    registry.aliases.promote(admin, "acme", "support", 3, alias="canary")
    assert [registry.resolve(user, name).number for name in ("support", "support@canary", "support@2")] == [1, 3, 2]
    adapter = registry.adapters.list(user, "acme")[0]
    assert [(alias.name, alias.version) for alias in adapter.aliases] == [("canary", 3), ("live", 1)]
    assert (adapter.version_count, adapter.live_version) == (3, 1)


def test_each_move_raises_the_revision_and_names_the_mover(registry: Registry, admin: Caller) -> None:
    first = registry.aliases.promote(admin, "acme", "support", 1)
    second = registry.aliases.promote(Caller.operator(), "acme", "support", 2)
    back = registry.aliases.rollback(admin, "acme", "support")
    assert [alias.revision for alias in (first, second, back)] == [1, 2, 3]
    assert [alias.moved_by for alias in (first, second, back)] == ["acme's admin", "operator", "acme's admin"]


def test_promoting_what_is_live_already_changes_nothing(registry: Registry, admin: Caller) -> None:
    first = registry.aliases.promote(admin, "acme", "support", 1)
    assert registry.aliases.promote(admin, "acme", "support", 1) == first
    with pytest.raises(ConflictError):
        registry.aliases.rollback(admin, "acme", "support")


def test_rolling_back_walks_down_the_promotions(registry: Registry, admin: Caller) -> None:
    for number in (1, 2, 3):
        registry.aliases.promote(admin, "acme", "support", number)
    assert [registry.aliases.rollback(admin, "acme", "support").version for _ in range(2)] == [2, 1]
    with pytest.raises(ConflictError) as caught:
        registry.aliases.rollback(admin, "acme", "support")
    assert caught.value.code == "nothing_to_roll_back"


def test_a_promotion_after_a_rollback_stands_on_what_was_rolled_back_to(registry: Registry, admin: Caller) -> None:
    registry.aliases.promote(admin, "acme", "support", 1)
    registry.aliases.promote(admin, "acme", "support", 2)
    registry.aliases.rollback(admin, "acme", "support")
    registry.aliases.promote(admin, "acme", "support", 3)
    assert registry.aliases.rollback(admin, "acme", "support").version == 1


def test_rolling_back_passes_over_what_can_no_longer_be_served(registry: Registry, admin: Caller) -> None:
    for number in (1, 2, 3):
        registry.aliases.promote(admin, "acme", "support", number)
    registry.versions.retire(admin, "acme", "support", 2)
    assert registry.aliases.rollback(admin, "acme", "support").version == 1


def test_an_alias_that_was_never_promoted_has_nothing_to_go_back_to(registry: Registry, admin: Caller) -> None:
    with pytest.raises(ConflictError) as caught:
        registry.aliases.rollback(admin, "acme", "support", alias="canary")
    assert caught.value.code == "nothing_to_roll_back"


def test_a_version_that_cannot_be_served_is_not_promoted(registry: Registry, admin: Caller) -> None:
    registry.versions.retire(admin, "acme", "support", 1)
    version = registry.versions.get(admin, "acme", "support", 2)
    registry.versions.record_probe(Caller.server(), version.id, ProbeVerdict(is_accepted=False))
    for number, state in ((1, "retired"), (2, "rejected")):
        with pytest.raises(ConflictError, match=state) as caught:
            registry.aliases.promote(admin, "acme", "support", number)
        assert caught.value.code == "version_not_ready"


def test_a_live_version_that_the_engine_rejects_is_not_resolved(
    registry: Registry, admin: Caller, user: Caller
) -> None:
    registry.aliases.promote(admin, "acme", "support", 1)
    version_id = registry.resolve(user, "support").version_id
    registry.versions.record_probe(Caller.server(), version_id, ProbeVerdict(is_accepted=False))
    with pytest.raises(NotFoundError):
        registry.resolve(user, "support")


def test_an_expected_revision_that_is_not_the_actual_one_stops_the_move(registry: Registry, admin: Caller) -> None:
    registry.aliases.promote(admin, "acme", "support", 1, expected_revision=0)
    for expected in (0, 2):
        with pytest.raises(ConflictError) as caught:
            registry.aliases.promote(admin, "acme", "support", 2, expected_revision=expected)
        assert caught.value.code == "version_conflict"
    registry.aliases.promote(admin, "acme", "support", 2, expected_revision=1)
    with pytest.raises(ConflictError):
        registry.aliases.rollback(admin, "acme", "support", expected_revision=1)
    assert registry.aliases.rollback(admin, "acme", "support", expected_revision=2).version == 1


def test_of_two_moves_from_the_same_revision_one_wins(registry: Registry, admin: Caller) -> None:
    registry.aliases.promote(admin, "acme", "support", 1)
    start = threading.Barrier(2)

    def move(number: int) -> Alias | ConflictError:
        start.wait()
        try:
            return registry.aliases.promote(admin, "acme", "support", number, expected_revision=1)
        except ConflictError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(move, (2, 3)))
    won = [outcome for outcome in outcomes if isinstance(outcome, Alias)]
    assert len(won) == 1
    assert registry.adapters.get(admin, "acme", "support").live_version == won[0].version


@pytest.mark.parametrize("alias", ["", "3", "Live", "a b", "..", "x" * 65])
def test_a_name_that_no_alias_may_have_is_refused(registry: Registry, admin: Caller, alias: str) -> None:
    for move in (
        partial(registry.aliases.promote, admin, "acme", "support", 1),
        partial(registry.aliases.rollback, admin, "acme", "support"),
    ):
        with pytest.raises(InvalidError) as caught:
            move(alias=alias)
        assert caught.value.code == "invalid_alias_name"


def test_an_alias_that_is_removed_means_nothing_and_its_version_may_be_retired(
    registry: Registry, admin: Caller, user: Caller
) -> None:
    live = registry.aliases.promote(admin, "acme", "support", 1)
    assert registry.aliases.remove(admin, "acme", "support", "live") == live
    with pytest.raises(NotFoundError):
        registry.resolve(user, "support")
    assert registry.adapters.get(admin, "acme", "support").aliases == ()
    assert registry.versions.retire(admin, "acme", "support", 1).retired_at is not None
    with pytest.raises(NotFoundError) as caught:
        registry.aliases.remove(admin, "acme", "support", "live")
    assert caught.value.code == "alias_not_found"


def test_an_alias_that_comes_anew_has_a_revision_that_its_name_never_had(registry: Registry, admin: Caller) -> None:
    seen: set[int] = set()
    for _ in range(3):
        told = [registry.aliases.promote(admin, "acme", "support", number) for number in (1, 2, 3)]
        told += [registry.aliases.rollback(admin, "acme", "support") for _ in range(2)]
        revisions = [alias.revision for alias in told]
        assert min(revisions) > max(seen, default=0)
        seen |= set(revisions)
        registry.aliases.remove(admin, "acme", "support", "live", expected_revision=revisions[-1])
    with pytest.raises(ConflictError) as caught:
        registry.aliases.promote(admin, "acme", "support", 1, expected_revision=max(seen))
    assert caught.value.code == "version_conflict"


def test_an_alias_that_comes_anew_has_its_history_and_nothing_to_go_back_to(registry: Registry, admin: Caller) -> None:
    registry.aliases.promote(admin, "acme", "support", 1)
    registry.aliases.remove(admin, "acme", "support", "live")
    registry.aliases.promote(admin, "acme", "support", 2, expected_revision=0)
    moves = registry.aliases.history(admin, "acme", "support")
    assert [(move.number, move.arms[0].version) for move in moves] == [(2, 2), (1, 1)]
    with pytest.raises(ConflictError) as caught:
        registry.aliases.rollback(admin, "acme", "support")
    assert caught.value.code == "nothing_to_roll_back"


def test_an_alias_that_was_moved_meanwhile_is_not_removed(registry: Registry, admin: Caller) -> None:
    for number in (1, 2):
        registry.aliases.promote(admin, "acme", "support", number)
    with pytest.raises(ConflictError) as caught:
        registry.aliases.remove(admin, "acme", "support", "live", expected_revision=1)
    assert caught.value.code == "version_conflict"


def test_an_alias_that_must_exist_is_not_made(registry: Registry, admin: Caller) -> None:
    with pytest.raises(ConflictError) as caught:
        registry.aliases.promote(admin, "acme", "support", 1, must_exist=True)
    assert caught.value.code == "version_conflict"
    registry.aliases.promote(admin, "acme", "support", 1)
    assert registry.aliases.promote(admin, "acme", "support", 2, must_exist=True).version == 2


@pytest.mark.parametrize("revision", [True, -1, 2**31, pytest.param(10**5000, id="huge"), 1.0])
def test_what_can_be_no_revision_is_refused(registry: Registry, admin: Caller, revision: int) -> None:
    with pytest.raises(InvalidError) as caught:
        registry.aliases.promote(admin, "acme", "support", 1, expected_revision=revision)
    assert caught.value.code == "invalid_revision"


@pytest.mark.parametrize("number", [0, -1, 2**31, 2**70, pytest.param(10**5000, id="huge")])
def test_a_number_that_no_version_has_is_not_found(registry: Registry, admin: Caller, number: int) -> None:
    for call in (registry.aliases.promote, registry.versions.get):
        with pytest.raises(NotFoundError) as caught:
            call(admin, "acme", "support", number)
        assert caught.value.code == "version_not_found"


def test_the_history_comes_in_pages(registry: Registry, admin: Caller) -> None:
    for number in (1, 2, 3, 1):
        registry.aliases.promote(admin, "acme", "support", number)
        registry.aliases.promote(admin, "acme", "support", number, alias="canary")
    whole = registry.aliases.history(admin, "acme", "support")
    assert [move.number for move in whole] == [4, 3, 2, 1]
    page = registry.aliases.history(admin, "acme", "support", limit=3)
    assert page + registry.aliases.history(admin, "acme", "support", before=page[-1].number) == whole
    assert registry.aliases.history(admin, "acme", "support", before=2**70) == whole


def test_a_long_stack_is_walked_down_in_a_handful_of_queries(
    registry: Registry, admin: Caller, operator: Caller
) -> None:
    registry.aliases.promote(admin, "acme", "support", 1)
    for number in (2, 3) * 20:
        registry.aliases.promote(admin, "acme", "support", number)
    for version in (2, 3):
        version_id = registry.versions.get(admin, "acme", "support", version).id
        registry.versions.record_probe(operator, version_id, ProbeVerdict(is_accepted=False))
    asked: list[str] = []
    event.listen(registry._database._engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    assert registry.aliases.rollback(admin, "acme", "support").version == 1
    assert len(asked) < 20
