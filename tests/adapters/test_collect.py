"""What nothing needs goes, and nothing else."""

import math
from pathlib import Path
from typing import Any

import pytest

from adapters import (
    BlobState,
    Caller,
    ConflictError,
    InvalidError,
    NotFoundError,
    ProbeVerdict,
    Registry,
    StorageError,
    VersionState,
)
from tests.adapters.conftest import Execute, Publish
from tests.builders import folder_of


def collected(registry: Registry, *, grace_seconds: float = 0) -> list[str]:
    return [blob.digest for blob in registry.collect(Caller.operator(), grace_seconds=grace_seconds)]


def test_the_bytes_of_a_retired_version_go_after_the_grace_period(
    registry: Registry, publish: Publish, admin: Caller
) -> None:
    digest = publish().version.manifest.digest
    registry.versions.retire(admin, "acme", "support", 1)
    assert collected(registry, grace_seconds=3600) == []
    assert collected(registry) == [digest]
    with pytest.raises(NotFoundError):
        folder_of(registry, digest)


@pytest.mark.parametrize("is_promoted", [True, False])
def test_what_can_be_served_stays(registry: Registry, publish: Publish, admin: Caller, *, is_promoted: bool) -> None:
    digest = publish().version.manifest.digest
    if is_promoted:
        registry.aliases.promote(admin, "acme", "support", 1)
    assert collected(registry) == []
    assert folder_of(registry, digest).is_dir()


def test_bytes_that_two_tenants_share_go_with_the_last(registry: Registry, publish: Publish, operator: Caller) -> None:
    digest = publish().version.manifest.digest
    publish(tenant="globex")
    registry.versions.retire(operator, "acme", "support", 1)
    assert collected(registry) == []
    registry.versions.retire(operator, "globex", "support", 1)
    assert collected(registry) == [digest]


def test_the_bytes_of_a_rejected_version_go(registry: Registry, publish: Publish) -> None:
    version = publish().version
    registry.versions.record_probe(Caller.server(), version.id, ProbeVerdict(is_accepted=False))
    assert collected(registry) == [version.manifest.digest]


def test_what_is_held_stays(registry: Registry, publish: Publish, admin: Caller) -> None:
    digest = publish().version.manifest.digest
    registry.versions.retire(admin, "acme", "support", 1)
    with registry.hold(digest) as folder:
        assert collected(registry) == []
        assert (folder / "adapter_config.json").is_file()
    assert collected(registry) == [digest]


def test_what_was_collected_is_published_again(registry: Registry, publish: Publish, admin: Caller) -> None:
    version = publish().version
    registry.versions.retire(admin, "acme", "support", 1)
    collected(registry)
    again = publish()
    assert (again.is_new, again.version.number) == (False, 1)
    assert registry.versions.restore(admin, "acme", "support", 1).state is VersionState.UNPROBED
    assert folder_of(registry, version.manifest.digest).is_dir()


def test_a_version_whose_bytes_are_gone_is_not_restored(registry: Registry, publish: Publish, admin: Caller) -> None:
    publish()
    registry.versions.retire(admin, "acme", "support", 1)
    collected(registry)
    with pytest.raises(ConflictError) as caught:
        registry.versions.restore(admin, "acme", "support", 1)
    assert caught.value.code == "blob_collected"


def test_a_blobs_row_without_its_bytes_makes_no_version(
    registry: Registry, publish: Publish, admin: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = registry._blobs.put

    def full(*_: Any) -> None:
        raise StorageError("The disk is full.")

    def put_and_lose(*blob: Any) -> None:
        """What was put is collected at once; who puts it again touches its row, and dies."""
        put(*blob)
        assert len(collected(registry)) == 1
        monkeypatch.setattr(registry._blobs, "put", full)
        with pytest.raises(StorageError):
            publish(tenant="globex")

    monkeypatch.setattr(registry._blobs, "put", put_and_lose)
    with pytest.raises(ConflictError) as caught:
        publish()
    assert caught.value.code == "blob_collected"
    assert registry.adapters.list(admin, "acme") == []


def test_bytes_that_came_after_they_were_collected_make_no_version_and_do_not_stay(
    registry: Registry, publish: Publish, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = registry._blobs.put

    def collect_and_put(*blob: Any) -> None:
        assert len(collected(registry)) == 1
        put(*blob)

    monkeypatch.setattr(registry._blobs, "put", collect_and_put)
    with pytest.raises(ConflictError) as caught:
        publish()
    assert caught.value.code == "blob_collected"
    assert len(collected(registry)) == 1
    assert list((home / "store" / "sha256").iterdir()) == []


def test_a_version_whose_bytes_alone_are_gone_is_not_restored(
    registry: Registry, publish: Publish, admin: Caller
) -> None:
    digest = publish().version.manifest.digest
    registry.versions.retire(admin, "acme", "support", 1)
    free = registry._blobs.delete(digest)
    assert free is not None
    free()
    with pytest.raises(ConflictError) as caught:
        registry.versions.restore(admin, "acme", "support", 1)
    assert caught.value.code == "blob_collected"
    assert collected(registry) == [digest]


def test_nobody_waits_while_the_room_is_freed(
    registry: Registry, publish: Publish, admin: Caller, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    registry.versions.retire(admin, "acme", "support", 1)
    delete, seen = registry._blobs.delete, list[int]()

    def delete_slowly(digest: str) -> Any:
        free = delete(digest)
        assert free is not None
        with pytest.raises(NotFoundError):
            folder_of(registry, digest)

        def look_and_free() -> None:
            seen.append(execute("SELECT count(*) FROM blobs")[0][0])
            registry.tenants.create(Caller.operator(), "initech")
            free()

        return look_and_free

    monkeypatch.setattr(registry._blobs, "delete", delete_slowly)
    assert (len(collected(registry)), seen) == (1, [0])


@pytest.mark.parametrize("grace_seconds", [-1, math.nan, math.inf, -math.inf, 1e300])
def test_what_can_be_no_grace_period_is_refused(registry: Registry, grace_seconds: float) -> None:
    with pytest.raises(InvalidError) as caught:
        collected(registry, grace_seconds=grace_seconds)
    assert caught.value.code == "invalid_grace"


def test_what_was_collected_is_not_missed(registry: Registry, publish: Publish, operator: Caller) -> None:
    kept = publish(seed=1).version.manifest.digest
    publish(seed=2)
    registry.versions.retire(operator, "acme", "support", 2)
    collected(registry)
    assert [(blob.digest, blob.state) for blob in registry.verify(operator)] == [(kept, BlobState.WHOLE)]


def test_what_was_collected_is_in_the_audit(registry: Registry, publish: Publish, operator: Caller) -> None:
    digest = publish().version.manifest.digest
    registry.versions.retire(operator, "acme", "support", 1)
    collected(registry)
    row = registry.audit(operator, limit=1)[0]
    assert (row.action, row.subject, row.tenant) == ("blob.collect", digest, None)
