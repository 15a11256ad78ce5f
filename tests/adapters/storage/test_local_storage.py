"""The disk fails: nothing is acknowledged that is not there, and what is there stays."""

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from adapters import BlobState, NotFoundError, StorageError
from adapters.digests import digest_folder
from adapters.storage import Staging, alone_in_place, locked
from tests.adapters.storage.conftest import FILES, LocalPlace, no_file_larger_than, put, stage, weights


def open_descriptors() -> list[int]:
    names = [int(one.name) for one in Path("/proc/self/fd").iterdir()]
    return [name for name in names if Path(f"/proc/self/fd/{name}").exists()]


def test_a_full_disk_is_told_and_forgotten_when_there_is_room(local: LocalPlace, tmp_path: Path) -> None:
    staged = stage(tmp_path)
    with no_file_larger_than(10), pytest.raises(StorageError) as caught:
        local.blobs.put(staged.folder, staged.manifest)
    assert caught.value.code == "insufficient_storage"
    assert str(tmp_path) not in caught.value.message
    assert local.read(staged.digest) == {}
    local.blobs.put(staged.folder, staged.manifest)
    assert weights(local.blobs, staged.digest) == staged.contents[FILES[1]]


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5])
def test_a_disk_that_does_not_take_a_sync_acknowledges_nothing(
    local: LocalPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    staged = stage(tmp_path)
    calls = []

    def fsync(_descriptor: int) -> None:
        calls.append(1)
        if len(calls) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    blobs = local.blobs
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(StorageError) as caught:
            put(blobs, staged)
    assert caught.value.code == "storage_unavailable"
    put(blobs, staged)
    assert blobs.check(staged.digest) is BlobState.WHOLE


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE])
def test_what_the_disk_says_of_a_rename_is_told_without_paths(
    local: LocalPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    staged = stage(tmp_path)

    def rename(path: Path, _target: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    blobs = local.blobs
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        with pytest.raises(StorageError) as caught:
            put(blobs, staged)
    is_full = number in {errno.ENOSPC, errno.EDQUOT}
    assert caught.value.code == ("insufficient_storage" if is_full else "storage_unavailable")
    assert str(tmp_path) not in caught.value.message
    with pytest.raises(NotFoundError):
        weights(blobs, staged.digest)


def test_a_folder_in_a_files_place_is_damage_and_is_mended(local: LocalPlace, tmp_path: Path) -> None:
    staged = stage(tmp_path)
    put(local.blobs, staged)
    file = local.root / "sha256" / staged.digest.removeprefix("sha256:") / FILES[0]
    file.unlink()
    file.mkdir()
    with pytest.raises(StorageError) as caught:
        weights(local.blobs, staged.digest)
    assert caught.value.code == "blob_damaged"
    put(local.blobs, staged)
    assert local.blobs.check(staged.digest) is BlobState.WHOLE


def test_a_file_in_a_blobs_place_is_damage_and_is_mended(local: LocalPlace, tmp_path: Path) -> None:
    staged = stage(tmp_path)
    (local.root / "sha256").mkdir(parents=True)
    (local.root / "sha256" / staged.digest.removeprefix("sha256:")).write_text("stray")
    put(local.blobs, staged)
    assert local.blobs.check(staged.digest) is BlobState.WHOLE
    assert local.quarantined() == 1


def test_nothing_is_deleted_while_it_is_checked(
    local: LocalPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = put(local.blobs, stage(tmp_path))
    told = []

    def collected_first(folder: Path) -> str:
        told.append(local.blobs.delete(staged.digest))
        return digest_folder(folder)

    monkeypatch.setattr("adapters.storage.local.digest_folder", collected_first)
    assert local.blobs.check(staged.digest) is BlobState.WHOLE
    assert told == [None]


def test_a_process_that_was_killed_before_it_freed_the_room_of_a_deleted_blob_leaves_it_to_a_sweep(
    local: LocalPlace, tmp_path: Path
) -> None:
    staged = put(local.blobs, stage(tmp_path))
    assert local.blobs.delete(staged.digest) is not None
    (trash,) = (local.root / "staging").iterdir()
    os.utime(trash, (0, 0))
    local.opened_again()
    assert not trash.exists()
    assert local.quarantined() == 0


@pytest.mark.parametrize("lock", [locked, alone_in_place])
def test_a_lock_ends_with_its_block_even_if_a_forked_process_has_it_open(
    tmp_path: Path, lock: Callable[[Path], AbstractContextManager[object]]
) -> None:
    with lock(tmp_path):
        # What a fork does to every descriptor.
        copies = [os.dup(one) for one in open_descriptors() if os.path.samestat(os.fstat(one), tmp_path.stat())]
    with alone_in_place(tmp_path) as is_ours:
        assert is_ours
    assert copies
    for copy in copies:
        os.close(copy)


def test_a_folder_that_is_whole_is_left_in_its_place(local: LocalPlace, tmp_path: Path) -> None:
    staged = stage(tmp_path)
    put(local.blobs, staged)
    folder = local.root / "sha256" / staged.digest.removeprefix("sha256:")
    before = folder.stat().st_ino
    put(local.blobs, staged)
    assert folder.stat().st_ino == before


def test_what_was_damaged_is_kept_for_a_person_to_look_at(local: LocalPlace, tmp_path: Path) -> None:
    staged = stage(tmp_path)
    put(local.blobs, staged)
    local.write(staged.digest, "manifest.json", None)
    put(local.blobs, staged)
    local.opened_again()
    assert local.quarantined() == 1


def test_a_staged_folder_is_gone_whatever_happens_in_it(tmp_path: Path) -> None:
    def break_off(staging: Staging) -> None:
        with staging.folder() as staged:
            (staged / "half").mkdir()
            raise KeyError

    with pytest.raises(KeyError):
        break_off(Staging(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_after_a_day(tmp_path: Path) -> None:
    with Staging(tmp_path).folder() as running:
        abandoned = running.with_name("abandoned")
        abandoned.mkdir()
        os.utime(abandoned, (0, 0))
        Staging(tmp_path)
        assert running.exists()
        assert not abandoned.exists()
