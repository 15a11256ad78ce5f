"""Publishing, reading and retiring versions."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters import (
    Base,
    Caller,
    ConflictError,
    ForbiddenError,
    InvalidError,
    Kind,
    Limits,
    Manifest,
    NotFoundError,
    ProbeVerdict,
    Published,
    RefusedError,
    Registry,
    VersionState,
    folder_members,
    open_registry,
)
from tests.adapters.conftest import Publish
from tests.builders import folder_of, make_adapter_folder, make_base, make_base_of, make_model_folder


def nested(depth: int) -> dict[str, Any]:
    """A mapping that many deep."""
    origin: dict[str, Any] = {}
    for _ in range(depth - 1):
        origin = {"deeper": origin}
    return origin


def test_a_published_adapter_can_be_promoted_resolved_and_read(
    registry: Registry, publish: Publish, admin: Caller, user: Caller, base: Base
) -> None:
    version = publish(origin={"method": "lora", "run": "r1"}).version
    registry.aliases.promote(admin, "acme", "support", 1)
    target = registry.resolve(user, "support")
    assert (target.label, target.version_id, target.rank) == ("acme/support@1", version.id, 8)
    assert (target.digest, target.base_fingerprint) == (version.manifest.digest, base.fingerprint)
    folder = folder_of(registry, target.digest)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    assert version.origin == {"method": "lora", "run": "r1"}
    assert registry.versions.get(admin, "acme", "support", 1) == version


def test_the_same_bytes_are_the_same_version(registry: Registry, publish: Publish, admin: Caller) -> None:
    first = publish()
    again = publish(origin={"another": "origin"})
    assert (first.is_new, again.is_new) == (True, False)
    assert again.version == first.version
    assert len(registry.versions.list(admin, "acme", "support")) == 1


def test_files_are_checked_as_if_they_were_published_and_nothing_is_kept(
    registry: Registry, admin: Caller, base: Base, tmp_path: Path
) -> None:
    folder = make_adapter_folder(tmp_path / "checked", base)
    manifest = registry.versions.check(admin, folder_members(folder), base=base.fingerprint)
    assert registry.adapters.list(admin, "acme") == []
    with pytest.raises(NotFoundError), registry.hold(manifest.digest):
        pass
    published = registry.versions.publish(admin, "acme", "support", folder_members(folder), base=base.fingerprint)
    assert published.version.manifest == manifest


def test_what_the_gate_would_refuse_is_refused_when_it_is_checked(
    registry: Registry, publish: Publish, admin: Caller, user: Caller, base: Base, tmp_path: Path
) -> None:
    publish()
    folder = make_adapter_folder(tmp_path / "broken", base, config={"use_dora": True})
    with pytest.raises(RefusedError) as refused:
        registry.versions.check(admin, folder_members(folder), base=base.fingerprint)
    with pytest.raises(RefusedError) as published:
        registry.versions.publish(admin, "acme", "support", folder_members(folder), base=base.fingerprint)
    assert refused.value.problems == published.value.problems
    with pytest.raises(NotFoundError, match="no base"):
        registry.versions.check(admin, folder_members(folder), base="unknown")
    with pytest.raises(ForbiddenError):
        registry.versions.check(user, folder_members(folder), base=base.fingerprint)


def test_numbers_are_consecutive_within_an_adapter(publish: Publish) -> None:
    numbers = [publish(seed=seed).version.number for seed in range(3)]
    assert numbers == [1, 2, 3]
    assert publish("other-adapter", seed=1).version.number == 1


def test_a_number_is_not_used_again_after_its_version_is_retired(
    registry: Registry, publish: Publish, admin: Caller
) -> None:
    publish(seed=0)
    publish(seed=1)
    registry.versions.retire(admin, "acme", "support", 2)
    assert publish(seed=2).version.number == 3


def test_versions_are_listed_the_newest_first(registry: Registry, publish: Publish, admin: Caller) -> None:
    for seed in range(3):
        publish(seed=seed)
    assert [version.number for version in registry.versions.list(admin, "acme", "support")] == [3, 2, 1]


def test_two_tenants_with_equal_bytes_share_a_blob_and_nothing_else(publish: Publish, home: Path) -> None:
    ours, theirs = publish(), publish(tenant="globex")
    assert ours.version.manifest.digest == theirs.version.manifest.digest
    assert ours.version.id != theirs.version.id
    assert theirs.is_new
    assert len(list((home / "store" / "sha256").iterdir())) == 1


def test_a_publish_is_there_after_the_registry_is_opened_again(
    registry: Registry, publish: Publish, admin: Caller, home: Path, database_url: str | None
) -> None:
    version = publish().version
    registry.close()
    with open_registry(home, database_url) as reopened:
        assert reopened.versions.get(admin, "acme", "support", 1) == version
        folder_of(reopened, version.manifest.digest)


def test_many_publishes_at_once_make_each_version_once(
    registry: Registry, admin: Caller, base: Base, tmp_path: Path
) -> None:
    folders = [make_adapter_folder(tmp_path / f"many-{seed}", base, seed=seed) for seed in range(4)]
    start = threading.Barrier(8)

    def publish_one(index: int) -> tuple[int, bool]:
        start.wait()
        members = folder_members(folders[index % 4])
        published = registry.versions.publish(admin, "acme", "busy", members, base=base.fingerprint)
        return published.version.number, published.is_new

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(publish_one, range(8)))
    assert sorted(number for number, is_new in outcomes if is_new) == [1, 2, 3, 4]
    assert {outcome[0] for outcome in outcomes} == {1, 2, 3, 4}


def test_an_unknown_base_is_refused_with_the_known_ones(registry: Registry, admin: Caller) -> None:
    with pytest.raises(NotFoundError, match="It has: tiny") as caught:
        registry.versions.publish(admin, "acme", "support", [], base="sha256:nothing")
    assert caught.value.code == "base_not_found"


@pytest.mark.parametrize(
    "name", ["A b", "-x", "..", "a..b", "x" * 65, "é", "'; DROP", "base", "other", "", "a/b", "a@1"]
)
def test_a_name_that_no_adapter_may_have_is_refused(registry: Registry, admin: Caller, base: Base, name: str) -> None:
    with pytest.raises(InvalidError) as caught:
        registry.versions.publish(admin, "acme", name, [], base=base.fingerprint)
    assert caught.value.code == "invalid_adapter_name"


@pytest.mark.parametrize("base_name", ["support", "acme/support", "support@1"])
def test_an_adapter_that_a_request_could_not_tell_from_a_base_is_refused(
    registry: Registry, publish: Publish, operator: Caller, admin: Caller, base_name: str
) -> None:
    registry.bases.add(operator, make_base(base_name))
    with pytest.raises(ConflictError) as caught:
        publish("support")
    assert caught.value.code == "name_taken_by_base"
    assert registry.adapters.list(admin, "acme") == []
    assert publish("support-2").is_new


def test_another_tenants_name_in_a_bases_name_takes_nothing(
    registry: Registry, publish: Publish, operator: Caller
) -> None:
    registry.bases.add(operator, make_base("globex/support"))
    assert publish("support").is_new


def test_a_base_that_comes_while_its_name_is_being_published_keeps_it(
    registry: Registry, publish: Publish, operator: Caller, admin: Caller
) -> None:
    def probe(_folder: Path, _manifest: Manifest) -> ProbeVerdict:
        registry.bases.add(operator, make_base("support"))
        return ProbeVerdict(is_accepted=True)

    with pytest.raises(ConflictError) as caught:
        publish("support", probe=probe)
    assert caught.value.code == "name_taken_by_base"
    assert registry.adapters.list(admin, "acme") == []


@pytest.mark.parametrize(
    "origin",
    [{"a": object()}, {"a": float("nan")}, {"a": "x" * 70_000}, nested(33), nested(5000), {"a": [nested(31)]}],
    ids=["object", "nan", "large", "deep", "deepest", "deep in a list"],
)
def test_an_origin_that_is_not_small_json_is_refused(publish: Publish, origin: Any) -> None:
    with pytest.raises(InvalidError) as caught:
        publish(origin=origin)
    assert caught.value.code == "invalid_origin"


def test_an_origin_is_kept_by_its_version_and_tells_calls_apart(
    registry: Registry, publish: Publish, operator: Caller, base: Base, tmp_path: Path
) -> None:
    assert publish(origin=nested(32)).version.origin == nested(32)
    assert "deeper" not in str(registry.audit(operator, limit=1))
    caller = replace(operator, idempotency_key="key-1")
    folder, support = make_adapter_folder(tmp_path / "again", base), ("acme", "support")
    for run in ("r1", "r1"):
        members, origin = folder_members(folder), {"run": run}
        registry.versions.publish(caller, *support, members, base=base.fingerprint, origin=origin)
    with pytest.raises(ConflictError) as caught:
        registry.versions.publish(caller, *support, folder_members(folder), base=base.fingerprint, origin={"run": "r2"})
    assert caught.value.code == "idempotency_key_reuse"


@pytest.mark.parametrize("first", [Kind.LORA, Kind.MERGED])
def test_no_adapter_has_both_adapters_and_whole_models(
    registry: Registry, publish: Publish, operator: Caller, tmp_path: Path, first: Kind
) -> None:
    model = registry.bases.add(operator, make_base_of(make_model_folder(tmp_path / "base"), "whole"))

    def publish_as(kind: Kind, seed: int) -> Published:
        if not kind.is_model:
            return publish("both", seed=seed)
        members = folder_members(make_model_folder(tmp_path / f"model-{seed}", seed=seed))
        return registry.versions.publish(operator, "acme", "both", members, base=model.fingerprint, kind=kind)

    publish_as(first, 1)
    with pytest.raises(ConflictError) as caught:
        publish_as(Kind.FULL if first is Kind.LORA else Kind.LORA, 2)
    assert caught.value.code == "kind_mismatch"
    assert publish_as(Kind.LORA if first is Kind.LORA else Kind.FULL, 3).version.number == 2


def test_no_caller_can_publish_a_rank_above_the_registrys(base: Base, admin: Caller, tmp_path: Path) -> None:
    folder = make_adapter_folder(tmp_path / "adapter", base, rank=16)
    with open_registry(tmp_path / "small", limits=Limits(max_rank=8)) as registry:
        registry.tenants.create(Caller.operator(), "acme")
        registry.bases.add(Caller.operator(), base)
        with pytest.raises(RefusedError, match="max_rank of 8") as caught:
            registry.versions.publish(admin, "acme", "support", folder_members(folder), base=base.fingerprint)
    assert caught.value.code == "rank_too_high"


# --- retiring ---------------------------------------------------------------------------------------------------------


def test_a_retired_version_is_not_resolved_and_stays_retired(
    registry: Registry, publish: Publish, admin: Caller, user: Caller
) -> None:
    publish()
    assert registry.resolve(user, "support@1").number == 1
    assert registry.versions.retire(admin, "acme", "support", 1).state is VersionState.RETIRED
    assert registry.versions.retire(admin, "acme", "support", 1).state is VersionState.RETIRED
    with pytest.raises(NotFoundError):
        registry.resolve(user, "support@1")
    assert publish().version.state is VersionState.RETIRED


def test_a_version_that_an_alias_points_at_is_not_retired(registry: Registry, publish: Publish, admin: Caller) -> None:
    publish()
    registry.aliases.promote(admin, "acme", "support", 1, alias="canary")
    with pytest.raises(ConflictError, match="canary") as caught:
        registry.versions.retire(admin, "acme", "support", 1)
    assert caught.value.code == "version_in_use"


@pytest.mark.parametrize("number", [0, -1, 2, 10**30])
def test_a_version_that_is_not_there_is_not_found(
    registry: Registry, publish: Publish, admin: Caller, number: int
) -> None:
    publish()
    for method in (registry.versions.get, registry.versions.retire, registry.aliases.promote):
        with pytest.raises(NotFoundError) as caught:
            method(admin, "acme", "support", number)
        assert caught.value.code == "version_not_found"
