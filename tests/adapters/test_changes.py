"""Each change has its audit row, and a call that is repeated under its idempotency key is not carried out again."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from adapters import (
    Base,
    Caller,
    ConflictError,
    InvalidError,
    NotFoundError,
    ProbeVerdict,
    Registry,
    Scope,
    Shadow,
    TenantLimits,
)
from tests.adapters.conftest import Execute, Publish

CHANGES: dict[str, Callable[[Registry, Caller, Base], object]] = {
    "tenant.create": lambda registry, caller, _: registry.tenants.create(caller, "initech"),
    "tenant.limit": lambda registry, caller, _: registry.tenants.set_limits(caller, "acme", TenantLimits(max_bytes=9)),
    "tenant.default": lambda registry, caller, _: registry.tenants.set_default(caller, "acme", "support@1"),
    "key.issue": lambda registry, caller, _: registry.keys.issue(
        caller, "acme", name="laptop", scopes=frozenset({Scope.INFER})
    ),
    "key.revoke": lambda registry, caller, _: registry.keys.revoke(
        caller, "acme", registry.keys.list(caller, "acme")[0].id
    ),
    "base.add": lambda registry, caller, base: registry.bases.add(caller, base),
    "alias.promote": lambda registry, caller, _: registry.aliases.promote(caller, "acme", "support", 2),
    "alias.rollback": lambda registry, caller, _: registry.aliases.rollback(caller, "acme", "support", alias="back"),
    "alias.remove": lambda registry, caller, _: registry.aliases.remove(caller, "acme", "support", "back"),
    "alias.shadow": lambda registry, caller, _: registry.aliases.shadow(
        caller, "acme", "support", Shadow(1, 10), alias="back"
    ),
    "version.retire": lambda registry, caller, _: registry.versions.retire(caller, "acme", "support", 3),
    "version.restore": lambda registry, caller, _: registry.versions.restore(caller, "acme", "support", 4),
    "version.annotate": lambda registry, caller, _: registry.versions.annotate(
        caller, "acme", "support", 1, tags=["good"], note="the first"
    ),
    "adapter.pin": lambda registry, caller, _: registry.adapters.pin(caller, "acme", "support"),
    "adapter.unpin": lambda registry, caller, _: registry.adapters.unpin(caller, "acme", "sales"),
    "grant.give": lambda registry, caller, _: registry.grants.give(caller, "acme", "support", "initech"),
    "grant.take": lambda registry, caller, _: registry.grants.take(caller, "acme", "support", "globex"),
}


@pytest.fixture
def prepared(registry: Registry, publish: Publish, operator: Caller) -> Registry:
    """A registry in which each of CHANGES can be made."""
    for seed in (1, 2, 3, 4):
        publish(seed=seed)
    for number in (1, 2):
        registry.aliases.promote(operator, "acme", "support", number, alias="back")
    registry.versions.retire(operator, "acme", "support", 4)
    registry.keys.issue(operator, "acme", name="old", scopes=frozenset({Scope.INFER}))
    registry.grants.give(operator, "acme", "support", "globex")
    publish("sales", seed=5)
    registry.adapters.pin(operator, "acme", "sales")
    return registry


@pytest.mark.parametrize("action", CHANGES)
def test_each_change_leaves_one_audit_row(prepared: Registry, operator: Caller, base: Base, action: str) -> None:
    before = len(prepared.audit(operator, limit=1000))
    CHANGES[action](prepared, replace(operator, request_id="req-1"), base)
    rows = prepared.audit(operator, limit=1000)
    assert len(rows) == before + 1
    assert (rows[0].action, rows[0].actor, rows[0].request_id) == (action, "operator", "req-1")


@pytest.mark.parametrize("action", CHANGES)
def test_a_repeated_call_gives_the_same_result_and_changes_nothing(
    prepared: Registry, operator: Caller, base: Base, action: str
) -> None:
    again = replace(operator, idempotency_key="key-1")
    first = CHANGES[action](prepared, again, base)
    rows = prepared.audit(operator, limit=1000)
    second = CHANGES[action](prepared, again, base)
    assert prepared.audit(operator, limit=1000) == rows
    assert second == (replace(first, secret="") if action == "key.issue" else first)  # type: ignore[type-var]


def test_a_publish_and_a_probe_are_audited(registry: Registry, publish: Publish, operator: Caller) -> None:
    version = publish().version
    registry.versions.record_probe(Caller.server(), version.id, ProbeVerdict(is_accepted=True))
    rows = [(row.action, row.subject, row.actor) for row in registry.audit(operator, limit=2)]
    assert rows == [("version.probe", "support@1", "server"), ("version.publish", "support@1", "operator")]


def test_a_failed_call_leaves_no_row_and_may_be_repeated(prepared: Registry, operator: Caller) -> None:
    caller = replace(operator, idempotency_key="key-1")
    before = prepared.audit(operator, limit=1000)
    with pytest.raises(NotFoundError):
        prepared.aliases.promote(caller, "acme", "support", 99)
    assert prepared.audit(operator, limit=1000) == before
    assert prepared.aliases.promote(caller, "acme", "support", 1).version == 1


def test_a_key_that_comes_with_another_call_is_refused(prepared: Registry, operator: Caller) -> None:
    caller = replace(operator, idempotency_key="key-1")
    prepared.aliases.promote(caller, "acme", "support", 1)
    with pytest.raises(ConflictError) as caught:
        prepared.aliases.promote(caller, "acme", "support", 2)
    assert caught.value.code == "idempotency_key_reuse"


def test_one_key_may_cover_two_steps_of_one_call(prepared: Registry, operator: Caller) -> None:
    caller = replace(operator, idempotency_key="key-1")
    prepared.aliases.promote(caller, "acme", "support", 1)
    assert prepared.versions.annotate(caller, "acme", "support", 1, note="live").note == "live"


def test_two_tenants_keys_are_two_keys(registry: Registry, publish: Publish, admin: Caller) -> None:
    publish()
    publish(tenant="globex")
    theirs = Caller(tenant="globex", scopes=frozenset({Scope.ADMIN}), name="globex's admin")
    ours, others = replace(admin, idempotency_key="k"), replace(theirs, idempotency_key="k")
    assert registry.aliases.promote(ours, "acme", "support", 1).moved_by == "acme's admin"
    assert registry.aliases.promote(others, "globex", "support", 1).moved_by == "globex's admin"


def test_of_many_equal_calls_at_once_one_is_carried_out(prepared: Registry, operator: Caller) -> None:
    caller = replace(operator, idempotency_key="key-1")
    start = threading.Barrier(8)

    def issue(_: int) -> str:
        start.wait()
        return prepared.keys.issue(caller, "acme", name="one", scopes=frozenset({Scope.INFER})).key.id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(issue, range(8)))) == 1
    assert [key.name for key in prepared.keys.list(operator, "acme")] == ["old", "one"]


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "ä", "a\nb", "\0"])
def test_what_can_be_no_idempotency_key_is_refused(prepared: Registry, operator: Caller, key: str) -> None:
    with pytest.raises(InvalidError) as caught:
        prepared.aliases.promote(replace(operator, idempotency_key=key), "acme", "support", 1)
    assert caught.value.code == "invalid_idempotency_key"


def test_an_admin_reads_of_its_own_tenant_only(registry: Registry, publish: Publish, admin: Caller) -> None:
    publish()
    publish(tenant="globex")
    assert {row.tenant for row in registry.audit(admin)} == {"acme"}
    with pytest.raises(NotFoundError) as caught:
        registry.audit(admin, tenant="globex")
    assert caught.value.code == "tenant_not_found"


def test_the_audit_is_read_in_pages(prepared: Registry, operator: Caller) -> None:
    whole = prepared.audit(operator, limit=1000)
    page = prepared.audit(operator, limit=3)
    assert page + prepared.audit(operator, before=page[-1].id, limit=1000) == whole


def test_a_keys_secret_is_in_no_row(registry: Registry, operator: Caller) -> None:
    caller = replace(operator, idempotency_key="key-1")
    secret = registry.keys.issue(caller, "acme", name="laptop", scopes=frozenset({Scope.INFER})).secret
    assert secret not in str(registry.audit(operator, limit=1000))


@pytest.mark.parametrize(
    "action",
    ["tenant.limit", "tenant.default", "key.revoke", "alias.promote", "grant.give", "adapter.pin", "adapter.unpin"],
)
def test_a_call_that_found_everything_so_already_leaves_a_row_that_says_so(
    prepared: Registry, operator: Caller, base: Base, action: str
) -> None:
    details = []
    for _ in range(2):
        before = len(prepared.audit(operator, limit=1000))
        CHANGES[action](prepared, operator, base)
        rows = prepared.audit(operator, limit=1000)
        assert len(rows) == before + 1
        details.append(dict(rows[0].detail))
    assert details[1] == {**details[0], "changed": False}
    assert "changed" not in details[0]


def test_the_audit_names_what_only_the_change_gave_a_name(prepared: Registry, operator: Caller) -> None:
    key = prepared.keys.issue(operator, "acme", name="laptop", scopes=frozenset({Scope.INFER})).key
    prepared.aliases.rollback(operator, "acme", "support", alias="back")
    back, issued = prepared.audit(operator, limit=2)
    assert (issued.subject, issued.detail["name"]) == (key.id, "laptop")
    assert (back.subject, back.detail["split"]) == ("support@back", {"1": 1})
    prepared.keys.revoke(operator, "acme", key.id)
    assert prepared.audit(operator, limit=1)[0].subject == key.id


def test_no_tenant_reads_whose_key_of_the_platform_it_was(
    registry: Registry, publish: Publish, admin: Caller, operator: Caller
) -> None:
    eve = Caller(tenant=None, scopes=operator.scopes, name="Eve of the platform (key-0123)")
    publish(seed=1)
    told = [
        registry.aliases.promote(eve, "acme", "support", 1),
        registry.grants.give(eve, "acme", "support", "globex"),
        registry.uploads.begin(eve, "acme", "sales"),
        registry.aliases.history(admin, "acme", "support"),
        registry.adapters.get(admin, "acme", "support"),
        registry.grants.list(admin, "acme", "support"),
        registry.uploads.list(admin, "acme"),
        registry.audit(admin),
    ]
    assert "Eve" not in str(told)
    assert "key-0123" not in str(told)
    assert registry.audit(admin)[0].actor == "platform"
    assert registry.audit(operator)[0].actor == eve.name
    assert {row.actor for row in registry.audit(admin)} == {"platform", "operator"}


def test_a_result_that_another_version_of_the_program_wrote_is_not_guessed_at(
    prepared: Registry, operator: Caller, execute: Execute
) -> None:
    caller = replace(operator, idempotency_key="key-1")
    prepared.aliases.promote(caller, "acme", "support", 1)
    execute("""UPDATE idempotency SET result = '{"value": {"name": "live"}}'""")
    with pytest.raises(ConflictError) as caught:
        prepared.aliases.promote(caller, "acme", "support", 1)
    assert caught.value.code == "idempotency_result_lost"


def age(execute: Execute) -> None:
    """All that was remembered comes from before the time for which it is."""
    execute("UPDATE idempotency SET created_at = '2020-01-02 03:04:05.000000'")


def test_a_key_from_long_ago_is_a_new_one(prepared: Registry, operator: Caller, execute: Execute) -> None:
    caller = replace(operator, idempotency_key="key-1")
    prepared.aliases.promote(caller, "acme", "support", 1)
    age(execute)
    assert prepared.aliases.promote(caller, "acme", "support", 2).version == 2
    assert prepared.aliases.promote(caller, "acme", "support", 2).version == 2


def test_calls_from_long_ago_are_forgotten_by_those_that_come(
    prepared: Registry, operator: Caller, execute: Execute
) -> None:
    for number in range(3):
        prepared.aliases.promote(replace(operator, idempotency_key=f"old-{number}"), "acme", "support", 1)
    age(execute)
    prepared.aliases.promote(replace(operator, idempotency_key="new"), "acme", "support", 2)
    assert execute("SELECT key FROM idempotency") == [("new",)]


@pytest.mark.parametrize(
    "wrong",
    [{"request_id": "x" * 65}, {"request_id": ""}, {"request_id": "a\0"}, {"name": "x" * 201}, {"name": "a\0"}],
    ids=["a long request", "no request", "NUL in a request", "a long name", "NUL in a name"],
)
def test_a_caller_that_the_audit_cannot_hold_is_refused(
    prepared: Registry, operator: Caller, wrong: dict[str, str]
) -> None:
    with pytest.raises(InvalidError) as caught:
        prepared.aliases.promote(replace(operator, **wrong), "acme", "support", 1)  # type: ignore[arg-type]
    assert caught.value.code == "invalid_caller"


@pytest.mark.parametrize(
    ("before", "is_all"), [(2**70, True), pytest.param(10**5000, True, id="huge"), (0, False), (-(2**70), False)]
)
def test_the_audit_is_read_before_any_number(
    prepared: Registry, operator: Caller, before: int, *, is_all: bool
) -> None:
    assert bool(prepared.audit(operator, before=before)) is is_all
