"""A blob is whole or not there, and never changes."""

import io
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters import Caller, NotFoundError, Registry, StorageError, folder_members, open_registry
from adapters.manifests import dump_manifest, load_manifest
from adapters.store import Store
from tests.adapters.conftest import Publish
from tests.builders import make_adapter_folder, make_base


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


FILES = ("adapter_config.json", "adapter_model.safetensors", "manifest.json")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_without_one_of_its_files_is_not_there(registry: Registry, publish: Publish, name: str) -> None:
    digest = publish().version.manifest.digest
    (registry.folder(digest) / name).unlink()
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


def spoil(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


TEARS: dict[str, Callable[[Path], object]] = {
    "no config": lambda folder: (folder / FILES[0]).unlink(),
    "no weights": lambda folder: (folder / FILES[1]).unlink(),
    "no manifest": lambda folder: (folder / FILES[2]).unlink(),
    "empty weights": lambda folder: spoil(folder / FILES[1], b""),
    "empty manifest": lambda folder: spoil(folder / FILES[2], b""),
    "a byte less": lambda folder: spoil(folder / FILES[1], (folder / FILES[1]).read_bytes()[:-1]),
    "a byte changed": lambda folder: spoil(folder / FILES[1], (folder / FILES[1]).read_bytes()[:-1] + b"\x01"),
    "another's manifest": lambda folder: spoil(folder / FILES[2], b"[]"),
    "a folder in a file's place": lambda folder: put_folder(folder / FILES[0]),
}


@pytest.mark.parametrize("tear", TEARS.values(), ids=TEARS.keys())
def test_publishing_the_same_bytes_again_mends_a_damaged_folder(
    registry: Registry, publish: Publish, home: Path, tear: Callable[[Path], object]
) -> None:
    digest = publish().version.manifest.digest
    tear(registry.folder(digest))
    assert not publish().is_new
    registry.store.verify(digest)
    assert sorted(path.name for path in registry.folder(digest).iterdir()) == list(FILES)
    assert len(list((home / "store" / "sha256").iterdir())) == 1


def test_the_torn_folder_of_a_commit_that_crashed_is_mended(
    registry: Registry, publish: Publish, home: Path, tmp_path: Path
) -> None:
    with open_registry(tmp_path / "elsewhere") as other:
        other.tenants.create(Caller.operator(), "acme")
        other.bases.add(Caller.operator(), make_base())
        folder = make_adapter_folder(tmp_path / "adapters" / "0", make_base())
        members = folder_members(folder)
        digest = other.versions.publish(
            Caller.operator(), "acme", "support", members, base="tiny"
        ).version.manifest.digest
    torn = home / "store" / "sha256" / digest.removeprefix("sha256:")
    torn.mkdir()
    (torn / "adapter_config.json").write_text("{")
    assert publish().version.manifest.digest == digest
    registry.store.verify(digest)


def test_many_that_mend_a_folder_at_once_leave_it_whole(registry: Registry, publish: Publish) -> None:
    digest = publish().version.manifest.digest
    (registry.folder(digest) / "manifest.json").unlink()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: publish(), range(8)))
    registry.store.verify(digest)


def test_a_folder_that_is_whole_is_left_in_its_place(registry: Registry, publish: Publish) -> None:
    folder = registry.folder(publish().version.manifest.digest)
    before = folder.stat().st_ino
    publish()
    assert folder.stat().st_ino == before


def test_what_was_damaged_is_kept_for_a_person_to_look_at(registry: Registry, publish: Publish, home: Path) -> None:
    folder = registry.folder(publish().version.manifest.digest)
    (folder / "manifest.json").unlink()
    os.utime(folder, (0, 0))
    publish()
    Store(home / "store")
    assert len(list((home / "store" / "quarantine").iterdir())) == 1


def test_a_full_disk_is_told_without_paths(registry: Registry, admin: Caller, tmp_path: Path) -> None:
    class Filling(io.BytesIO):
        def read(self, _size: int | None = -1) -> bytes:
            raise OSError(28, "No space left on device", str(tmp_path))

    with pytest.raises(StorageError, match="No space left") as caught:
        registry.versions.publish(admin, "acme", "support", [("adapter_config.json", Filling())], base="tiny")
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
