"""API keys are issued once, stored as hashes, and end when they are revoked or expire."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from adapters import Caller, InvalidError, KeyRejectedError, NotFoundError, Registry, Scope, TenantLimits
from adapters.schema import METADATA
from tests.adapters.conftest import Execute

INFER = frozenset({Scope.INFER})


def test_a_key_authenticates_its_holder(registry: Registry, admin: Caller) -> None:
    issued = registry.keys.issue(admin, "acme", name="laptop", scopes=INFER)
    assert re.fullmatch(r"lk-[A-Za-z0-9_-]{43}", issued.secret)
    caller = registry.keys.authenticate(issued.secret)
    assert (caller.tenant, caller.scopes) == ("acme", INFER)
    assert issued.key.id in caller.name


def test_a_caller_comes_with_its_key_and_its_tenants_limits(registry: Registry, operator: Caller) -> None:
    issued = registry.keys.issue(operator, "acme", name="laptop", scopes=INFER)
    assert registry.keys.authenticate(issued.secret).limits == TenantLimits()
    limits = TenantLimits(requests_per_minute=60, monthly_tokens=10**12)
    registry.tenants.set_limits(operator, "acme", limits)
    caller = registry.keys.authenticate(issued.secret)
    assert (caller.key_id, caller.limits) == (issued.key.id, limits)


def test_a_platform_key_authenticates_the_platform(registry: Registry, operator: Caller) -> None:
    issued = registry.keys.issue(operator, None, name="root", scopes=frozenset({Scope.PLATFORM}))
    caller = registry.keys.authenticate(issued.secret)
    assert (caller.tenant, caller.scopes) == (None, frozenset({Scope.PLATFORM}))


def test_the_database_never_sees_a_secret(registry: Registry, admin: Caller, execute: Execute) -> None:
    secret = registry.keys.issue(admin, "acme", name="laptop", scopes=INFER).secret
    stored = "\n".join(str(execute(str(select(table)))) for table in METADATA.tables.values())
    assert secret not in stored
    assert "laptop" in stored


def test_keys_are_listed_by_tenant_without_their_secrets(registry: Registry, operator: Caller, admin: Caller) -> None:
    ours = registry.keys.issue(admin, "acme", name="ours", scopes=INFER)
    registry.keys.issue(operator, "globex", name="theirs", scopes=INFER)
    platforms = registry.keys.issue(operator, None, name="platform's", scopes=frozenset({Scope.PLATFORM}))
    assert registry.keys.list(admin, "acme") == [ours.key]
    assert registry.keys.list(operator, None) == [platforms.key]
    assert ours.secret not in repr(ours.key)
    assert ours.secret.startswith(ours.key.prefix)


def test_a_revoked_an_expired_and_a_wrong_key_are_the_same_answer(
    registry: Registry, admin: Caller, execute: Execute
) -> None:
    revoked = registry.keys.issue(admin, "acme", name="revoked", scopes=INFER)
    registry.keys.revoke(admin, "acme", revoked.key.id)
    expired = registry.keys.issue(
        admin, "acme", name="expired", scopes=INFER, expires_at=datetime.now(UTC) + timedelta(hours=1)
    )
    assert registry.keys.authenticate(expired.secret).tenant == "acme"
    execute("UPDATE api_keys SET expires_at = '2026-01-01 00:00:00' WHERE name = 'expired'")
    answers = set()
    for secret in (revoked.secret, expired.secret, "lk-" + "A" * 43):
        with pytest.raises(KeyRejectedError) as caught:
            registry.keys.authenticate(secret)
        answers.add((caught.value.code, caught.value.message))
    assert len(answers) == 1


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "lk-",
        "' OR 1=1 --",
        "lk-" + "A" * 42,
        "lk-" + "A" * 44,
        "lk-" + "é" * 43,
        "\0",
        "lk-" + "A" * 10**6,
        "\ud800",
    ],
    ids=map(str, range(9)),
)
def test_what_can_be_no_key_is_rejected(registry: Registry, secret: str) -> None:
    with pytest.raises(KeyRejectedError):
        registry.keys.authenticate(secret)


def test_revoking_twice_keeps_the_first_time(registry: Registry, admin: Caller) -> None:
    key = registry.keys.issue(admin, "acme", name="k", scopes=INFER).key
    first = registry.keys.revoke(admin, "acme", key.id)
    assert first.revoked_at is not None
    assert registry.keys.revoke(admin, "acme", key.id) == first


@pytest.mark.parametrize("key_id", ["key-none", "", "' OR 1=1 --", "\0", "\ud800"])
def test_a_key_that_is_not_there_is_not_found(registry: Registry, admin: Caller, key_id: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        registry.keys.revoke(admin, "acme", key_id)
    assert caught.value.code == "key_not_found"


def test_another_tenants_key_is_not_found_here(registry: Registry, operator: Caller, admin: Caller) -> None:
    theirs = registry.keys.issue(operator, "globex", name="k", scopes=INFER)
    with pytest.raises(NotFoundError) as caught:
        registry.keys.revoke(admin, "acme", theirs.key.id)
    assert caught.value.code == "key_not_found"
    assert registry.keys.authenticate(theirs.secret).tenant == "globex"


@pytest.mark.parametrize(
    ("tenant", "scopes"),
    [
        ("acme", set()),
        ("acme", {Scope.PLATFORM}),
        ("acme", {Scope.PLATFORM, Scope.INFER}),
        (None, {Scope.INFER}),
        (None, {Scope.PLATFORM, Scope.ADMIN}),
        (None, set()),
    ],
    ids=map(str, range(6)),
)
def test_scopes_and_tenants_that_do_not_go_together_are_refused(
    registry: Registry, operator: Caller, tenant: str | None, scopes: set[Scope]
) -> None:
    with pytest.raises(InvalidError) as caught:
        registry.keys.issue(operator, tenant, name="k", scopes=frozenset(scopes))
    assert caught.value.code == "invalid_scopes"


@pytest.mark.parametrize("name", ["", " ", "x" * 101, "a\n", "\0", " k"])
def test_a_name_that_no_key_may_have_is_refused(registry: Registry, admin: Caller, name: str) -> None:
    with pytest.raises(InvalidError) as caught:
        registry.keys.issue(admin, "acme", name=name, scopes=INFER)
    assert caught.value.code == "invalid_key_name"


@pytest.mark.parametrize(
    "expires_at",
    [
        datetime(2020, 1, 1, tzinfo=UTC),
        datetime.fromisoformat("2999-01-01"),
        datetime.fromisoformat("9999-12-31T23:59:59-12:00"),
        datetime.fromisoformat("0001-01-01T00:00:00+12:00"),
    ],
    ids=["past", "naive", "past the last year", "before the first year"],
)
def test_an_expiry_in_the_past_or_without_a_zone_or_beyond_the_calendar_is_refused(
    registry: Registry, admin: Caller, expires_at: datetime
) -> None:
    with pytest.raises(InvalidError) as caught:
        registry.keys.issue(admin, "acme", name="k", scopes=INFER, expires_at=expires_at)
    assert caught.value.code == "invalid_expiry"


def test_keys_are_listed_in_pages(registry: Registry, admin: Caller) -> None:
    issued = [registry.keys.issue(admin, "acme", name=name, scopes=frozenset({Scope.INFER})).key for name in "abc"]
    page = registry.keys.list(admin, "acme", limit=2)
    assert page + registry.keys.list(admin, "acme", after=page[-1].id) == issued


@pytest.mark.parametrize("after", ["", "key-1", "\0", "\ud800", "' OR 1=1 --"])
def test_a_list_of_keys_goes_on_after_one_of_them(registry: Registry, operator: Caller, after: str) -> None:
    registry.keys.issue(operator, None, name="k", scopes=frozenset({Scope.PLATFORM}))
    with pytest.raises(InvalidError) as caught:
        registry.keys.list(operator, None, after=after)
    assert caught.value.code == "invalid_cursor"
