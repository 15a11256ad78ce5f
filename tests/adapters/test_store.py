"""What the registry publishes lies in its store whole, or is not there."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters import BlobState, Caller, Registry, StorageError, folder_members, open_registry
from adapters.manifests import dump_manifest, load_manifest
from tests.adapters.conftest import Publish
from tests.builders import make_adapter_folder, make_base

OPERATOR = Caller.operator()


def stored(home: Path, digest: str) -> Path:
    return home / "store" / "sha256" / digest.removeprefix("sha256:")


def states(registry: Registry) -> list[BlobState]:
    return [blob.state for blob in registry.verify(OPERATOR)]


def test_publishing_the_same_bytes_again_mends_a_damaged_blob(registry: Registry, publish: Publish, home: Path) -> None:
    folder = stored(home, publish().version.manifest.digest)
    (folder / "manifest.json").unlink()
    assert not publish().is_new
    assert states(registry) == [BlobState.WHOLE]


def test_the_torn_folder_of_a_commit_that_crashed_is_mended(
    registry: Registry, publish: Publish, home: Path, tmp_path: Path
) -> None:
    with open_registry(tmp_path / "elsewhere") as other:
        other.tenants.create(OPERATOR, "acme")
        other.bases.add(OPERATOR, make_base())
        folder = make_adapter_folder(tmp_path / "adapters" / "0", make_base())
        digest = other.versions.publish(
            OPERATOR, "acme", "support", folder_members(folder), base="tiny"
        ).version.manifest.digest
    torn = stored(home, digest)
    torn.mkdir()
    (torn / "adapter_config.json").write_text("{")
    assert publish().version.manifest.digest == digest
    assert states(registry) == [BlobState.WHOLE]


def test_many_that_publish_a_damaged_blob_at_once_leave_it_whole(
    registry: Registry, publish: Publish, home: Path
) -> None:
    (stored(home, publish().version.manifest.digest) / "manifest.json").unlink()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: publish(), range(8)))
    assert states(registry) == [BlobState.WHOLE]


def test_a_full_disk_is_told_without_paths(registry: Registry, admin: Caller, tmp_path: Path) -> None:
    class Filling(io.BytesIO):
        def read(self, _size: int | None = -1) -> bytes:
            raise OSError(28, "No space left on device", str(tmp_path))

    with pytest.raises(StorageError, match="No space left") as caught:
        registry.versions.publish(admin, "acme", "support", [("adapter_config.json", Filling())], base="tiny")
    assert caught.value.code == "insufficient_storage"
    assert str(tmp_path) not in caught.value.message


def test_a_field_that_a_later_program_wrote_in_a_manifest_is_kept(publish: Publish) -> None:
    stored_manifest = {**dump_manifest(publish().version.manifest), "of_tomorrow": [1]}
    loaded = load_manifest(stored_manifest)
    assert loaded.extra == {"of_tomorrow": [1]}
    assert dump_manifest(loaded) == stored_manifest
