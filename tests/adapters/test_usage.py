"""What was used: it adds up, whoever adds it, and each reads its own."""

import threading
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from adapters import Caller, InvalidError, Registry, UsageField, UsageRow, open_registry
from adapters.lookups import MAX_PAGE

MONDAY, TUESDAY = date(2026, 11, 23), date(2026, 11, 24)
COUNTS = {
    "requests": 2,
    "failed_requests": 1,
    "prompt_tokens": 5,
    "completion_tokens": 7,
    "aborted_requests": 3,
    "cached_tokens": 4,
    "answered_requests": 6,
    "first_token_ms": 90,
    "request_ms": 500,
}
ROW = UsageRow(MONDAY, "acme", "support", 3, "key-1", **COUNTS)


def read_week(registry: Registry, caller: Caller, **asked: Any) -> list[UsageRow]:
    return registry.usage.read(caller, since=MONDAY, until=date(2026, 11, 29), **asked)


def test_what_is_added_again_is_added_up(registry: Registry, operator: Caller) -> None:
    registry.usage.add(operator, [ROW])
    registry.usage.add(operator, [ROW, replace(ROW, version=4)])
    twice = UsageRow(MONDAY, "acme", "support", 3, "key-1", **{name: 2 * count for name, count in COUNTS.items()})
    assert read_week(registry, operator) == [twice, replace(ROW, version=4)]


def test_means_are_of_those_that_have_something_to_take_one_of() -> None:
    assert (ROW.mean_first_token_ms, ROW.mean_request_ms) == (90 / 6, 500 / 2)
    assert (UsageRow().mean_first_token_ms, UsageRow().mean_request_ms) == (None, None)


def test_it_is_summed_by_what_is_asked_for(registry: Registry, operator: Caller) -> None:
    rows = [ROW, replace(ROW, day=TUESDAY), replace(ROW, tenant="globex"), replace(ROW, key_id="key-2")]
    registry.usage.add(operator, rows)
    by_tenant = read_week(registry, operator, by=[UsageField.TENANT])
    assert [(row.tenant, row.requests, row.day) for row in by_tenant] == [("acme", 6, None), ("globex", 2, None)]
    (all_of_it,) = read_week(registry, operator, by=())
    assert (all_of_it.requests, all_of_it.completion_tokens) == (8, 28)
    assert registry.usage.read(operator, since=date(2020, 1, 1), until=date(2020, 1, 2), by=()) == []


def test_days_are_counted_from_the_first_to_the_last(registry: Registry, operator: Caller) -> None:
    registry.usage.add(operator, [replace(ROW, day=date(2026, 11, day)) for day in range(20, 26)])
    assert [row.day for row in registry.usage.read(operator, since=MONDAY, until=TUESDAY)] == [MONDAY, TUESDAY]
    assert registry.usage.tokens(operator, "acme", since=MONDAY, until=TUESDAY) == 2 * (5 + 7)
    assert registry.usage.tokens(operator, "globex", since=MONDAY, until=TUESDAY) == 0
    with pytest.raises(InvalidError) as caught:
        registry.usage.read(operator, since=TUESDAY, until=MONDAY)
    assert caught.value.code == "invalid_days"


def test_a_tenants_admin_reads_its_own(registry: Registry, operator: Caller, admin: Caller) -> None:
    registry.usage.add(operator, [ROW, replace(ROW, tenant="globex", adapter="acme/support")])
    assert read_week(registry, admin) == read_week(registry, admin, tenant="acme") == [ROW]
    assert len(read_week(registry, operator)) == 2
    assert read_week(registry, operator, adapter="acme/support")[0].tenant == "globex"
    assert read_week(registry, operator, adapter="\ud800") == []


@pytest.mark.parametrize("by", [tuple(UsageField), [UsageField.VERSION], [UsageField.VERSION, UsageField.DAY]])
def test_pages_give_every_row_once(registry: Registry, operator: Caller, by: list[UsageField]) -> None:
    rows = [
        replace(ROW, day=day, adapter=adapter, version=version)
        for day in (MONDAY, TUESDAY)
        for adapter in ("", "base", "globex/support")
        for version in (0, 2, 10)
    ]
    registry.usage.add(operator, rows)
    whole = read_week(registry, operator, by=by)
    paged: list[UsageRow] = []
    while page := read_week(registry, operator, by=by, limit=2, after=paged[-1].cursor if paged else None):
        paged += page
    assert paged == whole


@pytest.mark.parametrize(
    "cursor", ["", "x", "2026-11-23", "2026-13-45,a,b,1,c", f"2026-11-23,a,b,{2**31},c", "0,0,0,0,0"]
)
def test_a_cursor_that_no_row_has_is_refused(registry: Registry, operator: Caller, cursor: str) -> None:
    with pytest.raises(InvalidError) as caught:
        read_week(registry, operator, after=cursor)
    assert caught.value.code == "invalid_cursor"


@pytest.mark.parametrize("limit", [0, -1, MAX_PAGE + 1])
def test_a_page_has_its_bounds(registry: Registry, operator: Caller, limit: int) -> None:
    with pytest.raises(InvalidError):
        read_week(registry, operator, limit=limit)


def test_a_batch_is_added_whole_or_not_at_all(registry: Registry, operator: Caller) -> None:
    broken = replace(ROW, version=9, requests=None)  # type: ignore[arg-type]
    with pytest.raises(Exception, match="try again"):
        registry.usage.add(operator, [ROW, broken])
    assert read_week(registry, operator) == []


def test_servers_that_add_at_once_lose_nothing(
    registry: Registry, operator: Caller, home: Path, database_url: str | None
) -> None:
    rows = [replace(ROW, version=version) for version in range(20)]
    with open_registry(home, database_url) as other:
        threads = [
            threading.Thread(target=one.usage.add, args=(operator, order))
            for one, order in ((registry, rows), (other, rows[::-1]))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {row.requests for row in read_week(registry, operator)} == {6 * 2}
