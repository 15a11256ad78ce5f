"""A blob is whole or not there, and never changes."""

import os
import stat
from pathlib import Path

import pytest

from adapters import NotFoundError, Registry, StorageError
from adapters.manifests import dump_manifest, load_manifest
from adapters.store import Store
from tests.adapters.conftest import Publish


def test_stored_files_are_read_only(registry: Registry, publish: Publish) -> None:
    folder = registry.folder(publish().version.manifest.digest)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}
    assert folder.is_absolute()


@pytest.mark.parametrize(
    "digest",
    ["", "../../etc", "sha256:../x", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "a" * 64, "sha256:" + "a" * 64 + "\n"],
)
def test_a_digest_that_cannot_be_never_becomes_a_path(registry: Registry, digest: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        registry.folder(digest)
    assert caught.value.code == "digest_not_found"


def test_a_folder_without_its_manifest_is_not_there(registry: Registry, publish: Publish) -> None:
    digest = publish().version.manifest.digest
    (registry.folder(digest) / "manifest.json").unlink()
    with pytest.raises(NotFoundError):
        registry.folder(digest)


def test_a_change_to_stored_bytes_is_found_out(registry: Registry, publish: Publish) -> None:
    digest = publish().version.manifest.digest
    registry.store.verify(digest)
    weights = registry.folder(digest) / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(StorageError) as caught:
        registry.store.verify(digest)
    assert caught.value.code == "blob_damaged"


def test_a_staged_folder_is_gone_whatever_happens_in_it(tmp_path: Path) -> None:
    def break_off(store: Store) -> None:
        with store.stage() as staged:
            (staged / "half").mkdir()
            raise KeyError

    with pytest.raises(KeyError):
        break_off(Store(tmp_path))
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_full_disk_is_told_without_paths(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StorageError) as caught, store.stage() as staged:
        raise OSError(28, "No space left on device", str(staged))
    assert caught.value.code == "storage_unavailable"
    assert str(tmp_path) not in caught.value.message


def test_what_a_killed_process_left_is_swept_after_a_day(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.stage() as running:
        abandoned = running.with_name("abandoned")
        abandoned.mkdir()
        os.utime(abandoned, (0, 0))
        Store(tmp_path)
        assert running.exists()
        assert not abandoned.exists()


def test_a_field_that_a_later_program_wrote_in_a_manifest_is_kept(publish: Publish) -> None:
    stored = {**dump_manifest(publish().version.manifest), "of_tomorrow": [1]}
    loaded = load_manifest(stored)
    assert loaded.extra == {"of_tomorrow": [1]}
    assert dump_manifest(loaded) == stored
