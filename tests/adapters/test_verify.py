"""Bytes that rot are found, and serve nobody."""

from pathlib import Path

import pytest

from adapters import BlobState, Caller, ForbiddenError, NotFoundError, Registry, StorageError
from adapters.storage import LocalBlobs
from tests.adapters.conftest import Publish
from tests.builders import folder_of

OPERATOR = Caller.operator()


def flip_a_bit(file: Path) -> None:
    file.chmod(0o644)
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


def test_what_is_whole_is_named_with_all_versions_that_share_it(registry: Registry, publish: Publish) -> None:
    first = publish().version
    publish(adapter="other-name")

    (blob,) = registry.verify(OPERATOR)

    assert (blob.digest, blob.state) == (first.manifest.digest, BlobState.WHOLE)
    assert blob.versions == ("acme/other-name@1", "acme/support@1")


def test_a_changed_byte_is_found_set_aside_and_served_to_nobody(
    registry: Registry, publish: Publish, home: Path
) -> None:
    digest = publish().version.manifest.digest
    flip_a_bit(folder_of(registry, digest) / "adapter_model.safetensors")
    with pytest.raises(StorageError) as caught:
        folder_of(registry, digest)
    assert caught.value.code == "blob_damaged"

    assert [blob.state for blob in registry.verify(OPERATOR)] == [BlobState.DAMAGED]
    assert [blob.state for blob in registry.verify(OPERATOR)] == [BlobState.MISSING]

    assert len(list((home / "store" / "quarantine").iterdir())) == 1
    with pytest.raises(NotFoundError):
        folder_of(registry, digest)


def test_publishing_the_same_files_again_mends_what_was_set_aside(registry: Registry, publish: Publish) -> None:
    digest = publish().version.manifest.digest
    flip_a_bit(folder_of(registry, digest) / "adapter_config.json")
    list(registry.verify(OPERATOR))

    assert not publish().is_new

    assert [blob.state for blob in registry.verify(OPERATOR)] == [BlobState.WHOLE]


def test_what_is_collected_after_it_was_listed_is_not_missed(
    registry: Registry, publish: Publish, operator: Caller
) -> None:
    publish()
    walk = registry.verify(operator)
    registry.versions.retire(operator, "acme", "support", 1)
    assert len(list(registry.collect(operator, grace_seconds=0))) == 1
    assert list(walk) == []


def test_what_comes_back_while_it_is_verified_is_whole(
    registry: Registry, publish: Publish, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(registry, publish().version.manifest.digest)
    folder.rename(home / "elsewhere")
    check = LocalBlobs.check

    def put_back_after(blobs: LocalBlobs, digest: str) -> BlobState:
        state = check(blobs, digest)
        if not folder.exists():
            (home / "elsewhere").rename(folder)
        return state

    monkeypatch.setattr(LocalBlobs, "check", put_back_after)
    assert [blob.state for blob in registry.verify(OPERATOR)] == [BlobState.WHOLE]


def test_a_blob_that_the_disk_does_not_give_is_told_and_the_walk_goes_on(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = sorted(publish(seed=seed).version.manifest.digest for seed in (0, 1))
    check = LocalBlobs.check

    def failing(blobs: LocalBlobs, digest: str) -> BlobState:
        if digest == first:
            raise StorageError("The registry's disk can't be used: Input/output error.")
        return check(blobs, digest)

    monkeypatch.setattr(LocalBlobs, "check", failing)
    found = {blob.digest: blob.state for blob in registry.verify(OPERATOR)}
    assert found == {first: BlobState.UNREADABLE, second: BlobState.WHOLE}


def test_only_the_platform_may_verify(registry: Registry, admin: Caller) -> None:
    with pytest.raises(ForbiddenError):
        registry.verify(admin)
