"""Which label sets show: the busy ones, no more than the bound, and nobody's at another's cost."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from server.series import IDLE_SECONDS, LabelSet, LabelSets

KEEPER = ("zoo", "keeper", "1")
NOBODYS = ("other", "other", "other")


class Clock:
    """Seconds that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def numbered(index: int, tenant: str = "acme") -> LabelSet:
    return (tenant, f"adapter-{index}", "1")


def test_a_tenant_that_has_used_up_its_places_shares_its_own_and_takes_nobody_elses() -> None:
    sets = LabelSets(most=1000, most_of_one=20)
    greedy = [sets.find(numbered(index)).labels for index in range(2000)]
    assert len(set(greedy)) == 20
    assert greedy[-1] == ("acme", "other", "other")
    assert greedy[0] == sets.find(greedy[0]).labels
    assert sets.find(KEEPER).labels == KEEPER


def test_ten_thousand_tenants_make_no_more_label_sets_than_the_bound() -> None:
    sets = LabelSets(most=101, most_of_one=20)
    seen = [sets.find(numbered(1, f"tenant-{index}")).labels for index in range(10_000)]
    assert len(sets.all()) == 101
    assert seen[-1] == NOBODYS
    assert sets.find(("tenant-0", "another", "1")).labels == ("tenant-0", "other", "other")


def test_what_was_idle_for_an_hour_gives_its_place_to_what_is_not() -> None:
    clock = Clock()
    sets = LabelSets(most=100, most_of_one=3, clock=clock)
    first = sets.find(numbered(1))
    first.completion_tokens = 5
    clock.now = 1.0
    sets.find(numbered(2))
    clock.now = IDLE_SECONDS - 0.5
    assert sets.find(numbered(3)).labels == ("acme", "other", "other")
    clock.now = IDLE_SECONDS
    assert sets.find(numbered(3)).labels == numbered(3)
    assert not first.is_shown
    assert sets.find(numbered(2)).labels == numbered(2)
    assert sets.find(numbered(1)).labels == ("acme", "other", "other")


def test_what_comes_back_begins_at_nothing() -> None:
    clock = Clock()
    sets = LabelSets(most=3, most_of_one=3, clock=clock)
    sets.find(numbered(1)).completion_tokens = 5
    for labels in (KEEPER, numbered(1)):
        clock.now += IDLE_SECONDS
        assert sets.find(labels).labels == labels
    assert sets.find(numbered(1)).completion_tokens == 0


def test_a_tenant_that_is_idle_gives_all_its_places_to_others_and_one_that_is_not_keeps_them() -> None:
    clock = Clock()
    forgotten: list[tuple[LabelSet, bool]] = []
    sets = LabelSets(
        most=5, most_of_one=20, clock=clock, forget=lambda labels, is_last: forgotten.append((labels, is_last))
    )
    sets.find(numbered(1))
    sets.find(KEEPER)
    clock.now = IDLE_SECONDS
    sets.find(KEEPER)
    assert sets.find(numbered(1, "new")).labels == numbered(1, "new")
    assert forgotten == [(numbered(1), False), (("acme", "other", "other"), True)]
    assert sets.find(KEEPER).labels == KEEPER
    assert sets.find(numbered(1)).labels == NOBODYS


def test_what_is_no_traffic_takes_no_place_and_keeps_none() -> None:
    clock = Clock()
    sets = LabelSets(most=100, most_of_one=3, clock=clock)
    assert [sets.peek(numbered(index)).labels for index in (1, 2)] == [numbered(1), numbered(2)]
    clock.now = IDLE_SECONDS
    assert sets.peek(numbered(1)).labels == numbered(1)
    assert sets.peek(numbered(3)).labels == ("acme", "other", "other")
    assert sets.find(numbered(3)).labels == numbered(3)


@given(
    traffic=st.lists(
        st.tuples(
            st.sampled_from("abcdef"), st.integers(0, 5), st.sampled_from([0.0, 600.0, IDLE_SECONDS]), st.booleans()
        )
    ),
    most=st.integers(2, 12),
    most_of_one=st.integers(2, 5),
)
def test_whatever_the_traffic_the_bounds_hold_and_what_had_some_keeps_its_place(
    traffic: list[tuple[str, int, float, bool]], most: int, most_of_one: int
) -> None:
    clock = Clock()
    sets = LabelSets(most=most, most_of_one=most_of_one, clock=clock)
    used_at: dict[LabelSet, float] = {}
    for tenant, index, seconds, is_traffic in traffic:
        clock.now += seconds
        labels = numbered(index, tenant)
        shown = sets.find(labels) if is_traffic else sets.peek(labels)
        if is_traffic:
            used_at[shown.labels] = clock.now
        now_shown = {series.labels for series in sets.all()}
        assert shown.labels in now_shown
        assert shown.labels in {labels, (tenant, "other", "other"), NOBODYS}
        assert len(now_shown) == len(sets.all()) <= most
        assert max(Counter(labels[0] for labels in now_shown).values()) <= most_of_one
        recent = {labels for labels, at in used_at.items() if at > clock.now - IDLE_SECONDS}
        assert recent <= now_shown
        used_at = {labels: at for labels, at in used_at.items() if labels in now_shown}
