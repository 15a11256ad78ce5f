"""How many bytes a tenant may keep: there is no way round it, and what is refused leaves none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters import Caller, ConflictError, ForbiddenError, ProbeVerdict, Registry, TenantLimits, VersionState
from tests.adapters.conftest import Execute, Publish

ACCEPTED = ProbeVerdict(is_accepted=True)


@pytest.fixture
def size_bytes(registry: Registry, publish: Publish, operator: Caller) -> int:
    """Of one adapter. acme has support@1, and room for one."""
    size: int = publish(seed=1).version.manifest.size_bytes
    registry.tenants.set_limits(operator, "acme", TenantLimits(max_bytes=size))
    return size


@pytest.fixture
def kept(home: Path, execute: Execute) -> Any:
    """How many blobs are on the disk, and in the database."""

    def count() -> tuple[int, int]:
        on_disk = len(list((home / "store" / "sha256").iterdir()))
        rows: int = execute("SELECT count(*) FROM blobs")[0][0]
        return on_disk, rows

    return count


def collect(registry: Registry) -> int:
    return len(list(registry.collect(Caller.operator(), grace_seconds=0)))


def refused(method: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises((ForbiddenError, ConflictError)) as caught:
        method(*arguments, **options)
    return caught.value.code


@pytest.mark.usefixtures("size_bytes")
def test_a_publish_for_which_there_is_no_room_leaves_no_bytes(publish: Publish, kept: Any) -> None:
    assert [refused(publish, seed=seed) for seed in (2, 3, 4)] == ["quota_exceeded"] * 3
    assert kept() == (1, 1)


def test_a_publish_under_a_key_of_another_call_leaves_no_bytes(
    registry: Registry, operator: Caller, publish: Publish, kept: Any
) -> None:
    publish(seed=1)
    publish(seed=2)
    caller = replace(operator, idempotency_key="key-1")
    publish_as = registry.versions.publish

    def publish_again(_: Caller, *arguments: Any, **options: Any) -> Any:
        return publish_as(caller, *arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(registry.versions, "publish", publish_again)
        first = publish(seed=1)
        assert refused(publish, seed=3) == "idempotency_key_reuse"
        assert kept() == (2, 2)
        registry.versions.retire(operator, "acme", "support", 1)
        collect(registry)
        assert publish(seed=1) == first
        assert kept() == (1, 1)


@pytest.mark.usefixtures("size_bytes")
def test_what_is_retired_counts_until_it_is_collected(registry: Registry, publish: Publish, operator: Caller) -> None:
    registry.versions.retire(operator, "acme", "support", 1)
    assert refused(publish, seed=2) == "quota_exceeded"
    assert collect(registry) == 1
    assert publish(seed=2).is_new


@pytest.mark.usefixtures("size_bytes")
def test_what_another_tenant_keeps_anyway_counts_for_that_one(
    registry: Registry, publish: Publish, operator: Caller
) -> None:
    publish(tenant="globex", seed=1)
    registry.versions.retire(operator, "acme", "support", 1)
    assert publish(seed=2).is_new


@pytest.mark.usefixtures("size_bytes")
def test_a_version_for_which_there_is_no_room_any_more_is_not_restored(
    registry: Registry, publish: Publish, operator: Caller
) -> None:
    publish(tenant="globex", seed=1)
    registry.versions.retire(operator, "acme", "support", 1)
    publish(seed=2)
    assert refused(registry.versions.restore, operator, "acme", "support", 1) == "quota_exceeded"
    registry.versions.retire(operator, "acme", "support", 2)
    collect(registry)
    assert registry.versions.restore(operator, "acme", "support", 1).state is VersionState.UNPROBED


def test_a_rejected_version_is_lifted_only_if_there_is_room(
    registry: Registry, publish: Publish, operator: Caller, size_bytes: int
) -> None:
    version = registry.versions.get(operator, "acme", "support", 1)
    registry.versions.record_probe(Caller.server(), version.id, ProbeVerdict(is_accepted=False))
    collect(registry)
    publish(seed=2)
    assert refused(publish, seed=1, probe=lambda *_: ACCEPTED) == "quota_exceeded"
    assert registry.versions.get(operator, "acme", "support", 1).state is VersionState.REJECTED
    registry.tenants.set_limits(operator, "acme", TenantLimits(max_bytes=2 * size_bytes))
    assert publish(seed=1, probe=lambda *_: ACCEPTED).version.state is VersionState.READY


def test_what_a_tenant_has_already_is_published_again_whatever_its_limit(
    registry: Registry, publish: Publish, operator: Caller
) -> None:
    version = publish(seed=1).version
    registry.tenants.set_limits(operator, "acme", TenantLimits(max_bytes=0))
    assert publish(seed=1, probe=lambda *_: ACCEPTED).version == replace(version, state=VersionState.READY)


def test_the_last_room_is_taken_by_one(
    registry: Registry, publish: Publish, operator: Caller, kept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    size_bytes = publish("first", seed=1).version.manifest.size_bytes
    registry.tenants.set_limits(operator, "acme", TenantLimits(max_bytes=2 * size_bytes))
    put = registry._blobs.put

    def put_late(*blob: Any) -> None:
        monkeypatch.undo()
        publish("second", seed=2)
        put(*blob)

    monkeypatch.setattr(registry._blobs, "put", put_late)
    assert refused(publish, "third", seed=3) == "quota_exceeded"
    assert [adapter.name for adapter in registry.adapters.list(operator, "acme")] == ["first", "second"]
    assert (kept(), collect(registry), kept()) == ((3, 3), 1, (2, 2))
