"""Pins: which versions servers keep resident."""

from dataclasses import replace

import pytest

from adapters import Arm, Base, Caller, ForbiddenError, NotFoundError, Registry
from tests.adapters.conftest import Publish


def labels(registry: Registry, base: Base) -> list[str]:
    return [version.label for version in registry.adapters.pinned(Caller.server(), base)]


def test_a_pin_is_of_what_the_bare_name_means_now(
    registry: Registry, publish: Publish, operator: Caller, base: Base
) -> None:
    for seed in (1, 2, 3):
        publish(seed=seed)
    assert registry.adapters.pin(operator, "acme", "support").is_pinned
    assert labels(registry, base) == []
    registry.aliases.promote(operator, "acme", "support", 1, alias="canary")
    assert labels(registry, base) == []
    registry.aliases.promote(operator, "acme", "support", 2)
    assert labels(registry, base) == ["acme/support@2"]
    registry.aliases.promote(operator, "acme", "support", [Arm(1, 1), Arm(3, 2)])
    assert labels(registry, base) == ["acme/support@1", "acme/support@3"]
    registry.adapters.unpin(operator, "acme", "support")
    assert labels(registry, base) == []


def test_what_another_base_serves_is_not_for_this_one(
    registry: Registry, publish: Publish, operator: Caller, base: Base
) -> None:
    publish()
    registry.aliases.promote(operator, "acme", "support", 1)
    registry.adapters.pin(operator, "acme", "support")
    assert labels(registry, replace(base, fingerprint="sha256:another")) == []


def test_pins_of_several_tenants_come_by_their_names(
    registry: Registry, publish: Publish, operator: Caller, base: Base
) -> None:
    for tenant, adapter in (("globex", "a"), ("acme", "support"), ("acme", "sales")):
        publish(adapter, tenant=tenant)
        registry.aliases.promote(operator, tenant, adapter, 1)
        registry.adapters.pin(operator, tenant, adapter)
    assert labels(registry, base) == ["acme/sales@1", "acme/support@1", "globex/a@1"]


def test_a_pin_is_the_platforms_to_give_and_shows_in_the_tenants_list(
    registry: Registry, publish: Publish, operator: Caller, admin: Caller
) -> None:
    publish()
    with pytest.raises(ForbiddenError):
        registry.adapters.pin(admin, "acme", "support")
    registry.adapters.pin(operator, "acme", "support")
    assert [adapter.is_pinned for adapter in registry.adapters.list(admin, "acme")] == [True]
    with pytest.raises(NotFoundError):
        registry.adapters.pin(operator, "acme", "nothing")


def test_how_much_of_the_disk_is_used_is_told_and_without_a_cache_there_is_no_budget(
    registry: Registry, publish: Publish, operator: Caller
) -> None:
    assert registry.disk_use(operator).size_bytes == 0
    size_bytes = publish().version.manifest.size_bytes
    publish(tenant="globex")  # the same bytes
    assert (registry.disk_use(operator).size_bytes, registry.disk_use(operator).budget_bytes) in {
        (size_bytes, None),
        (0, 20 << 30),  # in an object store, nothing was read yet
    }
