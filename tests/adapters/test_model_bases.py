"""A model that a tenant has published is a base: its tenant's, and whom it is granted to, while it can be served."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adapters import Base, Caller, ConflictError, Kind, NotFoundError, Registry, Scope, VersionState, folder_members
from tests.adapters.conftest import Publish
from tests.builders import make_adapter_folder, make_base_of, make_model_folder

PublishModel = Callable[..., Base]


@pytest.fixture
def globex() -> Caller:
    return Caller(tenant="globex", scopes=frozenset({Scope.ADMIN}), name="globex's admin")


@pytest.fixture
def plain(registry: Registry, base: Base, operator: Caller, tmp_path: Path) -> Base:
    """What the models are made from."""
    return registry.bases.add(
        operator, replace(make_base_of(make_model_folder(tmp_path / "base"), "llama"), modules=base.modules)
    )


@pytest.fixture
def publish_model(registry: Registry, operator: Caller, plain: Base, tmp_path: Path) -> PublishModel:
    """Publish a model and give the base that it is: `publish_model("acme", "model", seed=1)`. Equal seeds are equal."""

    def published(tenant: str = "acme", adapter: str = "model", *, seed: int = 1) -> Base:
        folder = tmp_path / "models" / str(seed)
        if not folder.exists():
            make_model_folder(folder, seed=seed)
        version = registry.versions.publish(
            operator, tenant, adapter, folder_members(folder), base=plain.fingerprint, kind=Kind.FULL
        ).version
        return registry.bases.find(operator, version.label)

    return published


def labels(registry: Registry, caller: Caller) -> list[str]:
    return sorted(base.version for base in registry.bases.list(caller) if base.version is not None)


def assert_unknown(registry: Registry, caller: Caller, *references: str) -> None:
    for reference in references:
        with pytest.raises(NotFoundError) as caught:
            registry.bases.find(caller, reference)
        assert caught.value.code == "base_not_found"


def test_a_model_is_a_base_under_its_versions_name_and_its_fingerprint(
    registry: Registry, publish_model: PublishModel, admin: Caller
) -> None:
    model = publish_model()
    assert (model.name, model.version) == ("acme/model@1", "acme/model@1")
    assert registry.bases.find(admin, model.fingerprint) == model
    assert model in registry.bases.list(admin)


def test_a_retired_model_is_no_base_until_it_is_restored(
    registry: Registry, publish_model: PublishModel, admin: Caller, operator: Caller
) -> None:
    model = publish_model()
    registry.versions.retire(admin, "acme", "model", 1)
    for caller in (admin, operator):
        assert_unknown(registry, caller, "acme/model@1", model.fingerprint)
        assert labels(registry, caller) == []
        with pytest.raises(NotFoundError) as caught, registry.hold_base(caller, "acme/model@1"):
            pass
        assert "acme/model" not in caught.value.message.replace("'acme/model@1'", "")
    registry.versions.restore(admin, "acme", "model", 1)
    assert registry.bases.find(admin, "acme/model@1") == model


def test_a_collected_model_is_no_base(
    registry: Registry, publish_model: PublishModel, admin: Caller, operator: Caller
) -> None:
    model = publish_model()
    registry.versions.retire(admin, "acme", "model", 1)
    list(registry.collect(operator, grace_seconds=0))
    assert_unknown(registry, operator, "acme/model@1", model.fingerprint)


def test_two_tenants_with_the_same_model_have_it_each_as_its_own(
    registry: Registry, publish_model: PublishModel, admin: Caller, globex: Caller, operator: Caller
) -> None:
    first, second = publish_model(), publish_model("globex", "ours")
    assert first.fingerprint == second.fingerprint
    for caller, label in ((admin, "acme/model@1"), (globex, "globex/ours@1")):
        assert registry.bases.find(caller, first.fingerprint).version == label
        assert labels(registry, caller) == [label]
    assert labels(registry, operator) == ["acme/model@1", "globex/ours@1"]
    assert_unknown(registry, globex, "acme/model@1")

    registry.versions.retire(admin, "acme", "model", 1)
    assert registry.bases.find(globex, first.fingerprint).version == "globex/ours@1"
    assert_unknown(registry, admin, first.fingerprint)


def test_an_adapter_is_published_on_a_model_that_another_tenant_published_first(
    registry: Registry, publish_model: PublishModel, globex: Caller, tmp_path: Path
) -> None:
    publish_model()
    model = publish_model("globex", "ours")
    members = folder_members(make_adapter_folder(tmp_path / "adapter", model))
    published = registry.versions.publish(globex, "globex", "support", members, base=model.fingerprint)
    assert published.version.manifest.base_fingerprint == model.fingerprint


def test_a_grantee_has_the_servable_models_and_prefers_its_own(
    registry: Registry, publish_model: PublishModel, admin: Caller, globex: Caller
) -> None:
    model, other = publish_model(), publish_model(seed=2)
    registry.grants.give(admin, "acme", "model", "globex")
    assert labels(registry, globex) == ["acme/model@1", "acme/model@2"]
    assert registry.bases.find(globex, model.fingerprint).version == "acme/model@1"

    registry.versions.retire(admin, "acme", "model", 2)
    assert labels(registry, globex) == ["acme/model@1"]
    assert_unknown(registry, globex, "acme/model@2", other.fingerprint)

    publish_model("globex", "ours")
    assert registry.bases.find(globex, model.fingerprint).version == "globex/ours@1"
    registry.grants.take(admin, "acme", "model", "globex")
    assert labels(registry, globex) == ["globex/ours@1"]


def test_a_model_that_was_entered_as_a_base_is_everybodys(
    registry: Registry, publish_model: PublishModel, admin: Caller, globex: Caller, operator: Caller
) -> None:
    model = publish_model()
    entered = registry.bases.add(operator, replace(model, name="ours", path="/bases/ours", version=None))
    assert registry.bases.find(globex, model.fingerprint) == entered
    assert registry.bases.find(admin, "acme/model@1").version == "acme/model@1"
    registry.versions.retire(admin, "acme", "model", 1)
    assert_unknown(registry, operator, "acme/model@1")
    assert registry.bases.find(operator, "ours") == entered


def test_a_model_is_not_retired_while_its_tenants_adapters_can_be_served_on_it_alone(
    registry: Registry, publish_model: PublishModel, admin: Caller, tmp_path: Path
) -> None:
    model = publish_model()
    members = folder_members(make_adapter_folder(tmp_path / "adapter", model))
    registry.versions.publish(admin, "acme", "support", members, base=model.fingerprint)
    with pytest.raises(ConflictError, match="the base of 1 version ") as caught:
        registry.versions.retire(admin, "acme", "model", 1)
    assert caught.value.code == "base_in_use"

    publish_model("acme", "copy")
    assert registry.versions.retire(admin, "acme", "model", 1).state is VersionState.RETIRED
    registry.versions.retire(admin, "acme", "support", 1)
    assert registry.versions.retire(admin, "acme", "copy", 1).state is VersionState.RETIRED


def test_a_model_is_retired_whatever_other_tenants_have_on_it(
    registry: Registry, publish_model: PublishModel, admin: Caller, globex: Caller, tmp_path: Path
) -> None:
    model = publish_model()
    registry.grants.give(admin, "acme", "model", "globex")
    members = folder_members(make_adapter_folder(tmp_path / "adapter", model))
    registry.versions.publish(globex, "globex", "support", members, base=model.fingerprint)
    assert registry.versions.retire(admin, "acme", "model", 1).state is VersionState.RETIRED


def test_an_adapter_is_not_a_base(registry: Registry, publish: Publish, operator: Caller) -> None:
    publish()
    assert_unknown(registry, operator, "acme/support@1")
