"""An adapter that is shared: who was granted it may ask it, and nothing else."""

import pytest

from adapters import Caller, ForbiddenError, InvalidError, NotFoundError, Registry, Scope
from tests.adapters.conftest import Publish

FRIEND = Caller(tenant="globex", scopes=frozenset({Scope.INFER}), name="globex's user")
FRIENDS_ADMIN = Caller(tenant="globex", scopes=frozenset({Scope.ADMIN}), name="globex's admin")


@pytest.fixture(autouse=True)
def live(registry: Registry, publish: Publish, admin: Caller) -> None:
    for adapter in ("support", "sales"):
        publish(adapter)
        registry.aliases.promote(admin, "acme", adapter, 1)


def test_who_was_granted_an_adapter_asks_it_by_its_full_name(registry: Registry, admin: Caller) -> None:
    registry.grants.give(admin, "acme", "support", "globex")
    for name in ("acme/support", "acme/support@1", "acme/support@live"):
        assert registry.resolve(FRIEND, name).label == "acme/support@1"


def test_a_grant_is_of_one_adapter_to_one_tenant(registry: Registry, admin: Caller) -> None:
    registry.grants.give(admin, "acme", "support", "globex")
    stranger = Caller(tenant="initech", scopes=frozenset({Scope.INFER}), name="initech's user")
    for caller, name in ((FRIEND, "acme/sales"), (FRIEND, "support"), (stranger, "acme/support")):
        with pytest.raises(NotFoundError) as caught:
            registry.resolve(caller, name)
        assert caught.value.message == "You have no adapter with this name, version or alias."


def test_a_grant_that_is_taken_back_ends_at_the_next_request(registry: Registry, admin: Caller) -> None:
    registry.grants.give(admin, "acme", "support", "globex")
    registry.grants.take(admin, "acme", "support", "globex")
    with pytest.raises(NotFoundError):
        registry.resolve(FRIEND, "acme/support")
    with pytest.raises(NotFoundError) as caught:
        registry.grants.take(admin, "acme", "support", "globex")
    assert caught.value.code == "grant_not_found"


def test_a_grant_manages_nothing(registry: Registry, admin: Caller) -> None:
    registry.grants.give(admin, "acme", "support", "globex")
    for caller in (FRIEND, FRIENDS_ADMIN):
        with pytest.raises((NotFoundError, ForbiddenError)):
            registry.versions.list(caller, "acme", "support")
        with pytest.raises((NotFoundError, ForbiddenError)):
            registry.grants.give(caller, "acme", "support", "initech")


def test_an_admin_key_of_the_other_tenant_asks_nothing(registry: Registry, admin: Caller) -> None:
    registry.grants.give(admin, "acme", "support", "globex")
    with pytest.raises(ForbiddenError):
        registry.resolve(FRIENDS_ADMIN, "acme/support")


def test_whether_the_other_tenant_exists_is_not_told(registry: Registry, admin: Caller) -> None:
    there = registry.grants.give(admin, "acme", "support", "globex")
    not_there = registry.grants.give(admin, "acme", "support", "nobody-yet")
    assert (there.grantee, not_there.grantee) == ("globex", "nobody-yet")


def test_grants_are_listed_for_both_sides(registry: Registry, admin: Caller) -> None:
    given = registry.grants.give(admin, "acme", "support", "globex")
    assert registry.grants.give(admin, "acme", "support", "globex") == given
    assert registry.grants.list(admin, "acme", "support") == [given]
    assert [(adapter.tenant, adapter.name) for adapter in registry.adapters.granted(FRIEND)] == [("acme", "support")]
    assert registry.adapters.granted(admin) == []


@pytest.mark.parametrize(("grantee", "code"), [("acme", "invalid_grantee"), ("A b", "invalid_tenant_name")])
def test_what_can_be_granted_nothing_is_refused(registry: Registry, admin: Caller, grantee: str, code: str) -> None:
    with pytest.raises(InvalidError) as caught:
        registry.grants.give(admin, "acme", "support", grantee)
    assert caught.value.code == code


def test_a_grantee_sees_nothing_of_the_owners_inside(registry: Registry, publish: Publish, admin: Caller) -> None:
    publish("fresh", seed=3)
    for adapter in ("support", "fresh"):
        registry.grants.give(admin, "acme", adapter, "globex")
    registry.aliases.promote(admin, "acme", "support", 1, alias="secret-plan")
    found = registry.adapters.granted(FRIEND)
    assert [(one.label, one.is_live) for one in found] == [("acme/fresh", False), ("acme/support", True)]
    assert "secret-plan" not in str(found)
    assert admin.name not in str(found)


def test_grants_come_in_pages_on_both_sides(registry: Registry, admin: Caller) -> None:
    for grantee in ("a", "b", "globex"):
        registry.grants.give(admin, "acme", "support", grantee)
    page = registry.grants.list(admin, "acme", "support", limit=2)
    rest = registry.grants.list(admin, "acme", "support", after=page[-1].grantee)
    assert [grant.grantee for grant in page + rest] == ["a", "b", "globex"]
    registry.grants.give(admin, "acme", "sales", "globex")
    first = registry.adapters.granted(FRIEND, limit=1)
    second = registry.adapters.granted(FRIEND, after=first[-1].label)
    assert [one.label for one in first + second] == ["acme/sales", "acme/support"]


@pytest.mark.parametrize("after", ["", "acme", "/", "acme/", "\0/x", "acme/support/x", "A/b"])
def test_a_list_of_what_was_granted_goes_on_after_a_label(registry: Registry, after: str) -> None:
    with pytest.raises(InvalidError) as caught:
        registry.adapters.granted(FRIEND, after=after)
    assert caught.value.code == "invalid_cursor"
