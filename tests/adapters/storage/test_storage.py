"""What holds for every place for bytes: a blob is whole or not there, and never changes."""

import multiprocessing
import stat
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters import BlobState, NotFoundError, StorageError
from adapters.storage import Blobs
from tests.adapters.storage.conftest import FILES, Place, stage


def contents(blobs: Blobs, digest: str) -> dict[str, bytes]:
    with blobs.hold(digest) as folder:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in FILES}


def deleted(blobs: Blobs, digest: str) -> bool:
    free = blobs.delete(digest)
    if free is not None:
        free()
    return free is not None


def test_what_was_put_is_held_as_it_was_by_whoever_comes(place: Place, tmp_path: Path) -> None:
    staged = stage(tmp_path)
    place.blobs.put(staged.folder, staged.manifest)
    assert contents(place.blobs, staged.digest) == staged.contents
    assert contents(place.opened_again(), staged.digest) == staged.contents


def test_held_files_are_read_only_and_their_path_is_absolute(place: Place, tmp_path: Path) -> None:
    staged = stage(tmp_path)
    place.blobs.put(staged.folder, staged.manifest)
    with place.blobs.hold(staged.digest) as folder:
        assert folder.is_absolute()
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}


def test_a_large_file_comes_back_as_it_was(place: Place, tmp_path: Path) -> None:
    staged = stage(tmp_path, size_bytes=(9 << 20) + 1)
    place.blobs.put(staged.folder, staged.manifest)
    assert contents(place.blobs, staged.digest) == staged.contents


def test_putting_the_same_twice_changes_nothing(place: Place, tmp_path: Path) -> None:
    first, again = stage(tmp_path), stage(tmp_path)
    place.blobs.put(first.folder, first.manifest)
    before = place.read(first.digest)
    place.blobs.put(again.folder, again.manifest)
    assert place.read(first.digest) == before
    assert place.quarantined() == 0


def test_what_nobody_put_is_not_there(place: Place) -> None:
    missing = "sha256:" + "a" * 64
    with pytest.raises(NotFoundError) as caught, place.blobs.hold(missing):
        pass
    assert caught.value.code == "digest_not_found"
    assert place.blobs.check(missing) is BlobState.MISSING
    assert deleted(place.blobs, missing)


@pytest.mark.parametrize(
    "digest",
    ["", "../../etc", "sha256:../x", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "a" * 64, "sha256:" + "a" * 64 + "\n"],
)
def test_a_digest_that_cannot_be_never_becomes_a_path(place: Place, digest: str) -> None:
    with pytest.raises(NotFoundError) as caught, place.blobs.hold(digest):
        pass
    assert caught.value.code == "digest_not_found"


Tear = Callable[[Place, str], None]


def torn(name: str, change: Callable[[bytes], bytes | None]) -> Tear:
    return lambda place, digest: place.write(digest, name, change(place.read(digest)[name]))


DAMAGE: dict[str, Tear] = {
    "no config": torn(FILES[0], lambda _: None),
    "no weights": torn(FILES[1], lambda _: None),
    "empty weights": torn(FILES[1], lambda _: b""),
    "empty manifest": torn("manifest.json", lambda _: b""),
    "a byte less": torn(FILES[1], lambda raw: raw[:-1]),
    "a byte more": torn(FILES[1], lambda raw: raw + b"\0"),
    "a byte changed": torn(FILES[1], lambda raw: raw[:-1] + b"\1"),
    "no manifest": torn("manifest.json", lambda _: None),
    "another's manifest": torn("manifest.json", lambda _: b"[]"),
    "a file too many": lambda place, digest: place.write(digest, "stray", b"x"),
}
WITH_A_MANIFEST = [name for name in DAMAGE if name != "no manifest"]


@pytest.mark.parametrize("tear", DAMAGE.values(), ids=DAMAGE.keys())
def test_putting_the_same_bytes_again_mends_what_is_damaged(place: Place, tmp_path: Path, tear: Tear) -> None:
    staged, again = stage(tmp_path), stage(tmp_path)
    place.blobs.put(staged.folder, staged.manifest)
    tear(place, staged.digest)
    place.blobs.put(again.folder, again.manifest)
    assert place.blobs.check(staged.digest) is BlobState.WHOLE
    assert contents(place.blobs, staged.digest) == staged.contents
    assert set(place.read(staged.digest)) == {*FILES, "manifest.json"}


@pytest.mark.parametrize("name", WITH_A_MANIFEST)
def test_what_is_damaged_is_held_by_nobody(place: Place, tmp_path: Path, name: str) -> None:
    staged = stage(tmp_path)
    place.blobs.put(staged.folder, staged.manifest)
    DAMAGE[name](place, staged.digest)
    with pytest.raises(StorageError) as caught, place.blobs.hold(staged.digest):
        pass
    assert caught.value.code == "blob_damaged"


@pytest.mark.parametrize("name", WITH_A_MANIFEST)
def test_a_check_sets_what_is_damaged_aside_for_a_person_to_look_at(place: Place, tmp_path: Path, name: str) -> None:
    staged, other = stage(tmp_path), stage(tmp_path, seed=1)
    place.blobs.put(staged.folder, staged.manifest)
    place.blobs.put(other.folder, other.manifest)
    DAMAGE[name](place, staged.digest)

    assert place.blobs.check(staged.digest) is BlobState.DAMAGED
    assert place.blobs.check(staged.digest) is BlobState.MISSING

    assert place.quarantined() == 1
    assert place.read(staged.digest) == {}
    assert place.blobs.check(other.digest) is BlobState.WHOLE


def test_a_blob_without_a_manifest_is_not_there(place: Place, tmp_path: Path) -> None:
    staged = stage(tmp_path)
    place.blobs.put(staged.folder, staged.manifest)
    DAMAGE["no manifest"](place, staged.digest)
    with pytest.raises(NotFoundError), place.blobs.hold(staged.digest):
        pass


def test_a_blob_that_became_another_valid_one_is_refused(place: Place, tmp_path: Path) -> None:
    mine, other = stage(tmp_path), stage(tmp_path, seed=1)
    for staged in (mine, other):
        place.blobs.put(staged.folder, staged.manifest)
    for name, content in place.read(other.digest).items():
        place.write(mine.digest, name, content)
    with pytest.raises(StorageError) as caught, place.blobs.hold(mine.digest):
        pass
    assert caught.value.code == "blob_damaged"


def test_a_deleted_blob_is_gone_and_can_be_put_again(place: Place, tmp_path: Path) -> None:
    staged, again = stage(tmp_path), stage(tmp_path)
    place.blobs.put(staged.folder, staged.manifest)
    contents(place.blobs, staged.digest)
    assert deleted(place.blobs, staged.digest)
    assert place.read(staged.digest) == {}
    with pytest.raises(NotFoundError), place.blobs.hold(staged.digest):
        pass
    place.blobs.put(again.folder, again.manifest)
    assert contents(place.blobs, staged.digest) == staged.contents


def test_a_held_blob_is_not_deleted(place: Place, tmp_path: Path) -> None:
    staged = stage(tmp_path)
    place.blobs.put(staged.folder, staged.manifest)
    with place.blobs.hold(staged.digest) as folder:
        assert not deleted(place.blobs, staged.digest)
        assert (folder / FILES[1]).read_bytes() == staged.contents[FILES[1]]
    assert deleted(place.blobs, staged.digest)


def test_what_is_stored_is_told_by_the_place_itself_and_not_by_a_cache(place: Place, tmp_path: Path) -> None:
    staged = stage(tmp_path)
    assert not place.blobs.is_stored(staged.digest)
    place.blobs.put(staged.folder, staged.manifest)
    assert place.blobs.is_stored(staged.digest)
    with place.blobs.hold(staged.digest):
        for name in place.read(staged.digest):
            place.remove(staged.digest, name)
        assert not place.blobs.is_stored(staged.digest)


def test_a_deleted_blob_is_out_of_sight_before_its_room_is_freed_and_a_new_one_is_not_freed(
    place: Place, tmp_path: Path
) -> None:
    staged, again = stage(tmp_path), stage(tmp_path)
    place.blobs.put(staged.folder, staged.manifest)
    free = place.blobs.delete(staged.digest)
    assert free is not None
    assert not place.blobs.is_stored(staged.digest)
    place.blobs.put(again.folder, again.manifest)
    free()
    assert place.blobs.check(staged.digest) is BlobState.WHOLE


def put_and_hold(blobs: Blobs, root: Path) -> dict[str, bytes]:
    staged = stage(root)
    blobs.put(staged.folder, staged.manifest)
    return contents(blobs, staged.digest)


def test_many_threads_put_and_hold_the_same_at_once(place: Place, tmp_path: Path) -> None:
    expected = stage(tmp_path)
    blobs = place.blobs
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: put_and_hold(blobs, tmp_path / "staged"), range(16)))
    assert results == [expected.contents] * 16
    assert blobs.check(expected.digest) is BlobState.WHOLE


def put_and_hold_in(place: Place, root: Path) -> dict[str, bytes]:
    return put_and_hold(place.blobs, root)


def test_several_processes_put_and_hold_the_same_at_once(place: Place, tmp_path: Path) -> None:
    expected = stage(tmp_path)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(put_and_hold_in, [place] * 2, [tmp_path / "staged"] * 2))
    assert results == [expected.contents] * 2
    assert place.blobs.check(expected.digest) is BlobState.WHOLE


def test_many_that_mend_a_blob_at_once_leave_it_whole(place: Place, tmp_path: Path) -> None:
    staged = stage(tmp_path)
    blobs = place.blobs
    blobs.put(staged.folder, staged.manifest)
    DAMAGE["a byte changed"](place, staged.digest)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: put_and_hold(blobs, tmp_path / "staged"), range(8)))
    assert results == [staged.contents] * 8
    assert blobs.check(staged.digest) is BlobState.WHOLE
