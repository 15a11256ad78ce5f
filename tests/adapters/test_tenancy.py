"""Nobody learns anything of another tenant: every public method × wrong tenant."""

from collections.abc import Callable
from datetime import date

import pytest

from adapters import (
    Base,
    Caller,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    ProbeVerdict,
    Registry,
    RegistryError,
    Scope,
    TenantLimits,
)
from tests.adapters.conftest import Publish

Call = Callable[[Registry, Caller, str], object]
DAY = date(2026, 11, 22)

OF_A_TENANT: dict[str, Call] = {
    "tenants.get": lambda registry, caller, tenant: registry.tenants.get(caller, tenant),
    "keys.issue": lambda registry, caller, tenant: registry.keys.issue(
        caller, tenant, name="k", scopes=frozenset({Scope.INFER})
    ),
    "keys.list": lambda registry, caller, tenant: registry.keys.list(caller, tenant),
    "keys.revoke": lambda registry, caller, tenant: registry.keys.revoke(caller, tenant, "key-1"),
    "adapters.list": lambda registry, caller, tenant: registry.adapters.list(caller, tenant),
    "adapters.get": lambda registry, caller, tenant: registry.adapters.get(caller, tenant, "support"),
    "versions.publish": lambda registry, caller, tenant: registry.versions.publish(
        caller, tenant, "support", [], base="tiny"
    ),
    "versions.get": lambda registry, caller, tenant: registry.versions.get(caller, tenant, "support", 1),
    "versions.list": lambda registry, caller, tenant: registry.versions.list(caller, tenant, "support"),
    "versions.retire": lambda registry, caller, tenant: registry.versions.retire(caller, tenant, "support", 1),
    "aliases.promote": lambda registry, caller, tenant: registry.aliases.promote(caller, tenant, "support", 1),
    "versions.restore": lambda registry, caller, tenant: registry.versions.restore(caller, tenant, "support", 1),
    "versions.annotate": lambda registry, caller, tenant: registry.versions.annotate(caller, tenant, "support", 1),
    "versions.lineage": lambda registry, caller, tenant: registry.versions.lineage(caller, tenant, "support", 1),
    "aliases.rollback": lambda registry, caller, tenant: registry.aliases.rollback(caller, tenant, "support"),
    "aliases.remove": lambda registry, caller, tenant: registry.aliases.remove(caller, tenant, "support", "live"),
    "aliases.shadow": lambda registry, caller, tenant: registry.aliases.shadow(caller, tenant, "support", None),
    "aliases.history": lambda registry, caller, tenant: registry.aliases.history(caller, tenant, "support"),
    "grants.give": lambda registry, caller, tenant: registry.grants.give(caller, tenant, "support", "initech"),
    "grants.take": lambda registry, caller, tenant: registry.grants.take(caller, tenant, "support", "initech"),
    "grants.list": lambda registry, caller, tenant: registry.grants.list(caller, tenant, "support"),
    "tenants.set_default": lambda registry, caller, tenant: registry.tenants.set_default(caller, tenant, "support@1"),
    "usage.read": lambda registry, caller, tenant: registry.usage.read(caller, tenant=tenant, since=DAY, until=DAY),
    "usage.tokens": lambda registry, caller, tenant: registry.usage.tokens(caller, tenant, since=DAY, until=DAY),
    "audit": lambda registry, caller, tenant: registry.audit(caller, tenant=tenant),
}
OF_THE_PLATFORM: dict[str, Call] = {
    "tenants.create": lambda registry, caller, tenant: registry.tenants.create(caller, f"new-{tenant}"),
    "tenants.set_limits": lambda registry, caller, tenant: registry.tenants.set_limits(caller, tenant, TenantLimits()),
    "adapters.pin": lambda registry, caller, tenant: registry.adapters.pin(caller, tenant, "support"),
    "adapters.unpin": lambda registry, caller, tenant: registry.adapters.unpin(caller, tenant, "support"),
    "adapters.pinned": lambda registry, caller, _: registry.adapters.pinned(
        caller, registry.bases.find(Caller.operator(), "tiny")
    ),
    "disk_use": lambda registry, caller, _: registry.disk_use(caller),
    "versions.record_probe": lambda registry, caller, _: registry.versions.record_probe(
        caller, 1, ProbeVerdict(is_accepted=True)
    ),
    "usage.add": lambda registry, caller, _: registry.usage.add(caller, []),
    "verify": lambda registry, caller, _: registry.verify(caller),
    "collect": lambda registry, caller, _: list(registry.collect(caller, grace_seconds=0)),
    "keys.issue": lambda registry, caller, _: registry.keys.issue(
        caller, None, name="k", scopes=frozenset({Scope.PLATFORM})
    ),
    "keys.list": lambda registry, caller, _: registry.keys.list(caller, None),
    "keys.revoke": lambda registry, caller, _: registry.keys.revoke(caller, None, "key-1"),
    "bases.add": lambda registry, caller, _: registry.bases.add(caller, registry.bases.find(Caller.operator(), "tiny")),
}
OF_NOBODY = {"keys.authenticate", "bases.find", "tenants.list", "bases.list", "adapters.granted", "versions.check"}
"""No tenant is named to these: one tells who asks, the others give what the caller may see; tested by themselves."""


def test_the_walk_below_leaves_no_public_method_out(registry: Registry) -> None:
    parts = ("tenants", "keys", "bases", "adapters", "versions", "aliases", "grants", "usage")
    public = {f"{part}.{name}" for part in parts for name in dir(getattr(registry, part)) if not name.startswith("_")}
    walked = OF_A_TENANT.keys() | OF_THE_PLATFORM.keys() | OF_NOBODY
    assert public == walked - {"audit", "disk_use", "verify", "collect"}


@pytest.mark.parametrize("call", OF_A_TENANT.values(), ids=OF_A_TENANT.keys())
def test_another_tenants_things_and_missing_ones_are_the_same_answer(
    registry: Registry, publish: Publish, admin: Caller, call: Call
) -> None:
    publish(tenant="globex")
    anothers = refused(call, registry, admin, "globex")
    missing = refused(call, registry, admin, "ghosts")
    assert type(anothers) is type(missing) is NotFoundError
    assert anothers.code == missing.code == "tenant_not_found"
    assert anothers.message.replace("globex", "ghosts") == missing.message


@pytest.mark.parametrize("call", OF_A_TENANT.values(), ids=OF_A_TENANT.keys())
@pytest.mark.parametrize("tenant", ["no-such-tenant", "NOT A NAME", "", "\0", "\ud800", "' OR 1=1 --", "acme' --"])
def test_a_tenant_that_is_not_there_is_not_found_by_the_operator_either(
    registry: Registry, operator: Caller, call: Call, tenant: str
) -> None:
    assert refused(call, registry, operator, tenant).code == "tenant_not_found"


@pytest.mark.parametrize("call", OF_THE_PLATFORM.values(), ids=OF_THE_PLATFORM.keys())
def test_what_is_the_platforms_is_forbidden_to_tenants(
    registry: Registry, admin: Caller, user: Caller, call: Call
) -> None:
    for caller in (admin, user):
        assert refused(call, registry, caller, "acme").code == "permission_denied"


@pytest.mark.parametrize("name", sorted(OF_A_TENANT.keys() - {"tenants.get", "adapters.list", "adapters.get"}))
def test_an_inference_key_manages_nothing_whosever_it_is(
    registry: Registry, publish: Publish, user: Caller, name: str
) -> None:
    publish()
    answers = {
        (error.code, error.message)
        for tenant in ("acme", "globex", "ghosts")
        for error in [refused(OF_A_TENANT[name], registry, user, tenant)]
    }
    assert len(answers) == 1
    assert answers.pop()[0] == "permission_denied"


@pytest.mark.parametrize(
    "caller",
    [
        Caller(tenant="acme", scopes=frozenset({Scope.PLATFORM}), name="a tenant's key that says platform"),
        Caller(tenant="acme", scopes=frozenset(), name="a key without scopes"),
        Caller(tenant=None, scopes=frozenset(), name="nobody"),
    ],
    ids=lambda caller: caller.name,
)
def test_the_decision_is_made_on_the_whole_caller(registry: Registry, publish: Publish, caller: Caller) -> None:
    publish()
    for call in (*OF_A_TENANT.values(), *OF_THE_PLATFORM.values()):
        assert isinstance(refused(call, registry, caller, "acme"), ForbiddenError)
    with pytest.raises(ForbiddenError):
        registry.resolve(caller, "support")


def test_an_admin_without_a_tenant_reaches_no_tenant(registry: Registry) -> None:
    nobodys = Caller(tenant=None, scopes=frozenset({Scope.ADMIN}), name="nobody's admin")
    for call in OF_A_TENANT.values():
        assert isinstance(refused(call, registry, nobodys, "acme"), NotFoundError)


def test_a_tenants_admin_sees_its_own_tenant_only(
    registry: Registry, operator: Caller, admin: Caller, user: Caller
) -> None:
    assert [tenant.name for tenant in registry.tenants.list(operator)] == ["acme", "globex"]
    assert [tenant.name for tenant in registry.tenants.list(admin)] == ["acme"]
    assert registry.tenants.get(admin, "acme").name == "acme"
    with pytest.raises(ForbiddenError):
        registry.tenants.list(user)


def test_bases_are_seen_by_admins(
    registry: Registry, base: Base, operator: Caller, admin: Caller, user: Caller
) -> None:
    assert registry.bases.list(operator) == registry.bases.list(admin) == [base]
    with pytest.raises(ForbiddenError):
        registry.bases.list(user)


# --- resolve ----------------------------------------------------------------------------------------------------------


def test_every_reason_not_to_resolve_is_the_same_answer(
    registry: Registry, publish: Publish, admin: Caller, user: Caller, operator: Caller
) -> None:
    publish("support")
    publish("retired")
    registry.versions.retire(admin, "acme", "retired", 1)
    publish("secret", tenant="globex")
    registry.aliases.promote(operator, "globex", "secret", 1)
    names = (
        *("nothing", "support", "support@99", "support@canary", "retired@1", "secret", "secret@1", "base"),
        *("globex/secret", "globex/secret@1", "ghosts/secret", "globex/support@1"),
    )
    answers = set()
    for name in names:
        with pytest.raises(NotFoundError) as caught:
            registry.resolve(user, name)
        answers.add((caught.value.code, caught.value.message))
    assert answers == {("adapter_not_found", "You have no adapter with this name, version or alias.")}


def test_a_name_may_repeat_its_own_tenant(registry: Registry, publish: Publish, user: Caller) -> None:
    publish()
    assert registry.resolve(user, "acme/support@1") == registry.resolve(user, "support@1")


def test_equal_names_of_two_tenants_are_two_adapters(registry: Registry, publish: Publish, user: Caller) -> None:
    ours, theirs = publish(seed=1).version, publish(tenant="globex", seed=2).version
    globex = Caller(tenant="globex", scopes=user.scopes, name="globex's user")
    assert registry.resolve(user, "support@1").version_id == ours.id
    assert registry.resolve(globex, "support@1").version_id == theirs.id


@pytest.mark.parametrize("name", ["operator", "admin"])
def test_asking_needs_a_tenants_key_with_the_scope_infer(
    registry: Registry, publish: Publish, request: pytest.FixtureRequest, name: str
) -> None:
    publish()
    with pytest.raises(ForbiddenError):
        registry.resolve(request.getfixturevalue(name), "acme/support@1")


@pytest.mark.parametrize(
    "name",
    ["", " ", "x" * 300, "\uff53upport", "a\0", "a\n", "a@-1", "a@0", "a@01", "a@latest@1", "a@", "@1", "/a", "a/b/c",
     "a@99999999999", "..", "../a", "a%2fb", "' OR 1=1 --", "A"],
)  # fmt: skip
def test_what_can_be_no_name_is_invalid(registry: Registry, user: Caller, name: str) -> None:
    with pytest.raises(InvalidError) as caught:
        registry.resolve(user, name)
    assert caught.value.code == "invalid_adapter_name"
    assert caught.value.message.isascii()


def refused(call: Call, registry: Registry, caller: Caller, tenant: str) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        call(registry, caller, tenant)
    return caught.value
