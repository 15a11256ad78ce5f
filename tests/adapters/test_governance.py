"""What people do with versions beside promoting them: restore, annotate, trace back; and what a tenant may have."""

import pytest

from adapters import Caller, ForbiddenError, InvalidError, NotFoundError, Registry, TenantLimits, VersionState
from tests.adapters.conftest import Publish
from tests.builders import folder_of


def test_a_retired_version_is_restored_and_probed_anew(
    registry: Registry, publish: Publish, admin: Caller, user: Caller
) -> None:
    publish()
    retired = registry.versions.retire(admin, "acme", "support", 1)
    assert (retired.state, retired.retired_at is None) == (VersionState.RETIRED, False)
    restored = registry.versions.restore(admin, "acme", "support", 1)
    assert (restored.state, restored.retired_at) == (VersionState.UNPROBED, None)
    assert not registry.resolve(user, "support@1").is_probed


def test_a_version_that_is_not_retired_stays_as_it_is(registry: Registry, publish: Publish, admin: Caller) -> None:
    version = publish().version
    assert registry.versions.restore(admin, "acme", "support", 1) == version


def test_a_version_that_is_not_retired_is_not_read_to_stay_as_it_is(
    registry: Registry, publish: Publish, admin: Caller
) -> None:
    version = publish().version
    config = folder_of(registry, version.manifest.digest) / "adapter_config.json"
    config.chmod(0o644)
    config.write_bytes(b"{}")
    assert registry.versions.restore(admin, "acme", "support", 1) == version


def test_tags_and_a_note_are_kept_and_replaced_apart(registry: Registry, publish: Publish, admin: Caller) -> None:
    publish()
    tagged = registry.versions.annotate(admin, "acme", "support", 1, tags=["prod", "eu", "prod"], note="Good.\nUse it.")
    assert (tagged.tags, tagged.note) == (("eu", "prod"), "Good.\nUse it.")
    assert registry.versions.annotate(admin, "acme", "support", 1, tags=[]).note == "Good.\nUse it."
    assert registry.versions.get(admin, "acme", "support", 1).tags == ()


@pytest.mark.parametrize("tags", [[""], ["A b"], ["x" * 65], [f"t{number}" for number in range(33)]])
def test_what_can_be_no_tag_is_refused(registry: Registry, publish: Publish, admin: Caller, tags: list[str]) -> None:
    publish()
    with pytest.raises(InvalidError) as caught:
        registry.versions.annotate(admin, "acme", "support", 1, tags=tags)
    assert caught.value.code == "invalid_tag"


@pytest.mark.parametrize("note", ["x" * 2001, "\0", "\x1b[31m", "\ud800"])
def test_what_can_be_no_note_is_refused(registry: Registry, publish: Publish, admin: Caller, note: str) -> None:
    publish()
    with pytest.raises(InvalidError) as caught:
        registry.versions.annotate(admin, "acme", "support", 1, note=note)
    assert caught.value.code == "invalid_note"


def test_lineage_tells_what_a_version_was_made_from(registry: Registry, publish: Publish, admin: Caller) -> None:
    publish("one", seed=1)
    publish("two", seed=2, parents=["one@1"])
    publish("three", seed=3, parents=["acme/two@1", "one@1"])
    line = registry.versions.lineage(admin, "acme", "three", 1)
    assert [version.label for version in line] == ["acme/three@1", "acme/two@1", "acme/one@1"]


def test_a_version_has_each_parent_once(publish: Publish) -> None:
    publish("one", seed=1)
    version = publish("two", seed=2, parents=["one@1", "acme/one@1"] * 5000).version
    assert version.parents == ("acme/one@1",)


def test_a_version_has_not_too_many_parents(publish: Publish) -> None:
    with pytest.raises(InvalidError, match="at most 32") as caught:
        publish(parents=[f"one@{number}" for number in range(1, 34)])
    assert caught.value.code == "invalid_parent"


@pytest.mark.parametrize(
    ("parent", "code"),
    [
        ("one", "invalid_parent"),
        ("one@live", "invalid_parent"),
        ("globex/one@1", "invalid_parent"),
        ("one@7", "version_not_found"),
        ("none@1", "adapter_not_found"),
        ("../x", "invalid_adapter_name"),
    ],
)
def test_a_parent_is_a_version_of_the_same_tenant(registry: Registry, publish: Publish, parent: str, code: str) -> None:
    publish("one", seed=1)
    with pytest.raises((InvalidError, NotFoundError)) as caught:
        publish("two", seed=2, parents=[parent])
    assert caught.value.code == code
    assert [adapter.name for adapter in registry.adapters.list(Caller.operator(), "acme")] == ["one"]


def test_a_tenant_has_the_limits_that_were_set(registry: Registry, operator: Caller, admin: Caller) -> None:
    assert registry.tenants.get(admin, "acme").limits == TenantLimits()
    limits = TenantLimits(max_adapters=3, requests_per_minute=60)
    assert registry.tenants.set_limits(operator, "acme", limits).limits == limits
    assert registry.tenants.get(admin, "acme").limits == limits
    assert registry.tenants.get(operator, "globex").limits == TenantLimits()


@pytest.mark.parametrize("limit", [-1, 2**60, True])
def test_what_can_be_no_limit_is_refused(registry: Registry, operator: Caller, limit: int) -> None:
    with pytest.raises(InvalidError) as caught:
        registry.tenants.set_limits(operator, "acme", TenantLimits(max_adapters=limit))
    assert caught.value.code == "invalid_limits"


def test_a_tenant_has_no_more_adapters_than_it_may(registry: Registry, publish: Publish, operator: Caller) -> None:
    registry.tenants.set_limits(operator, "acme", TenantLimits(max_adapters=1))
    publish("one", seed=1)
    with pytest.raises(ForbiddenError) as caught:
        publish("two", seed=2)
    assert caught.value.code == "quota_exceeded"
    assert publish("one", seed=2).version.number == 2
    assert publish("two", tenant="globex", seed=2).version.number == 1


def test_a_tenant_has_no_more_bytes_than_it_may(registry: Registry, publish: Publish, operator: Caller) -> None:
    size_bytes = publish(seed=1).version.manifest.size_bytes
    registry.tenants.set_limits(operator, "acme", TenantLimits(max_bytes=size_bytes + 1))
    publish("same", seed=1)  # the same bytes again take no more
    with pytest.raises(ForbiddenError) as caught:
        publish(seed=2)
    assert caught.value.code == "quota_exceeded"
    registry.versions.retire(operator, "acme", "support", 1)
    registry.versions.retire(operator, "acme", "same", 1)
    assert len(list(registry.collect(operator, grace_seconds=0))) == 1
    assert publish(seed=2).is_new


def test_lists_come_in_pages(registry: Registry, publish: Publish, operator: Caller) -> None:
    for number in range(5):
        publish(f"adapter-{number}", seed=number)
        publish("many", seed=number)
    page = registry.adapters.list(operator, "acme", limit=4)
    rest = registry.adapters.list(operator, "acme", after=page[-1].name)
    assert [adapter.name for adapter in page + rest] == [*(f"adapter-{number}" for number in range(5)), "many"]
    newest = registry.versions.list(operator, "acme", "many", limit=2)
    older = registry.versions.list(operator, "acme", "many", before=newest[-1].number)
    assert [version.number for version in newest + older] == [5, 4, 3, 2, 1]
    assert [tenant.name for tenant in registry.tenants.list(operator, after="acme")] == ["globex"]


@pytest.mark.parametrize("limit", [0, -1, 1001, 10**9])
def test_a_page_has_bounds(registry: Registry, operator: Caller, limit: int) -> None:
    with pytest.raises(InvalidError) as caught:
        registry.adapters.list(operator, "acme", limit=limit)
    assert caught.value.code == "invalid_limit"


@pytest.mark.parametrize("after", ["", "' OR 1=1 --", "\0", "A"])
def test_a_page_goes_on_after_a_name(registry: Registry, operator: Caller, after: str) -> None:
    with pytest.raises(InvalidError) as caught:
        registry.adapters.list(operator, "acme", after=after)
    assert caught.value.code == "invalid_cursor"
