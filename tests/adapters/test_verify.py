"""Bytes that rot are found, and serve nobody."""

from pathlib import Path

import pytest

from adapters import BlobState, Caller, ForbiddenError, NotFoundError, Registry, StorageError
from tests.adapters.conftest import Publish

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
    flip_a_bit(registry.folder(digest) / "adapter_model.safetensors")
    with pytest.raises(StorageError) as caught:
        registry.folder(digest)
    assert caught.value.code == "blob_damaged"

    assert [blob.state for blob in registry.verify(OPERATOR)] == [BlobState.DAMAGED]
    assert [blob.state for blob in registry.verify(OPERATOR)] == [BlobState.MISSING]

    assert len(list((home / "store" / "quarantine").iterdir())) == 1
    with pytest.raises(NotFoundError):
        registry.folder(digest)


def test_publishing_the_same_files_again_mends_what_was_set_aside(registry: Registry, publish: Publish) -> None:
    digest = publish().version.manifest.digest
    flip_a_bit(registry.folder(digest) / "adapter_config.json")
    list(registry.verify(OPERATOR))

    assert not publish().is_new

    assert [blob.state for blob in registry.verify(OPERATOR)] == [BlobState.WHOLE]


def test_only_the_platform_may_verify(registry: Registry, admin: Caller) -> None:
    with pytest.raises(ForbiddenError):
        registry.verify(admin)
