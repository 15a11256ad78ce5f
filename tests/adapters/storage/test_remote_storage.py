"""The object store fails in every way it can: each is told, nothing acknowledged is lost, and it passes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from adapters import BlobState, Caller, NotFoundError, StorageError, folder_members, open_registry
from adapters.digests import digest_folder
from adapters.storage.remote import RemoteBlobs
from tests.adapters.storage.conftest import (
    FILES,
    QUICK,
    RemotePlace,
    assert_is_told,
    no_file_larger_than,
    put,
    spoil,
    stage,
    weights,
)
from tests.builders import make_adapter_folder, make_base
from tests.s3 import BUCKET, Failure, FaultProxy

TRANSIENT: list[tuple[Failure, str]] = [
    ("refuse", "storage_unavailable"),
    ("slow down", "storage_unavailable"),
    ("forbid", "store_misconfigured"),
]


@pytest.mark.parametrize(("failure", "code"), TRANSIENT)
def test_a_store_that_fails_is_told_and_works_again_when_it_does(
    remote: RemotePlace, proxy: FaultProxy, tmp_path: Path, failure: Failure, code: str
) -> None:
    kept, new = put(remote.blobs, stage(tmp_path)), stage(tmp_path, seed=1)
    proxy.fail(failure)
    for attempt in (lambda: put(remote.blobs, new), lambda: weights(remote.blobs, kept.digest)):
        with pytest.raises(StorageError) as caught:
            attempt()
        assert_is_told(caught.value, code, proxy)
    with pytest.raises(StorageError):
        remote.blobs.check(kept.digest)
    with pytest.raises(StorageError):
        remote.blobs.delete(kept.digest)
    assert remote.staged() == []

    proxy.mend()
    assert weights(remote.blobs, kept.digest) == kept.contents[FILES[1]]
    assert remote.blobs.check(new.digest) is BlobState.MISSING
    put(remote.blobs, new)
    assert weights(remote.blobs, new.digest) == new.contents[FILES[1]]
    assert remote.quarantined() == 0


def test_what_is_cached_is_served_while_the_store_is_down(
    remote: RemotePlace, proxy: FaultProxy, tmp_path: Path
) -> None:
    staged = put(remote.blobs, stage(tmp_path))
    weights(remote.blobs, staged.digest)
    proxy.fail("refuse")
    asked = proxy.requests.total()
    assert weights(remote.blobs, staged.digest) == staged.contents[FILES[1]]
    assert proxy.requests.total() == asked


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_store_that_is_slow_for_a_moment_is_asked_again(
    remote: RemotePlace, proxy: FaultProxy, tmp_path: Path, method: str
) -> None:
    proxy.fail("slow down", method=method, times=2)
    staged = put(remote.blobs, stage(tmp_path))
    assert weights(remote.blobs, staged.digest) == staged.contents[FILES[1]]


def test_a_store_that_hangs_is_given_up_on(proxy: FaultProxy, tmp_path: Path) -> None:
    impatient = replace(QUICK, silence_seconds=0.2, retries=1)
    remote = RemotePlace(tmp_path / "cache", proxy.endpoint, patience=impatient)
    staged = put(remote.blobs, stage(tmp_path))
    proxy.fail("hang")
    with pytest.raises(StorageError) as caught:
        weights(remote.blobs, staged.digest)
    assert_is_told(caught.value, "storage_unavailable", proxy)
    proxy.mend()
    assert weights(remote.blobs, staged.digest) == staged.contents[FILES[1]]


@pytest.mark.parametrize("key", [*FILES, "manifest.json"])
def test_a_put_whose_answer_was_lost_succeeds(remote: RemotePlace, proxy: FaultProxy, tmp_path: Path, key: str) -> None:
    proxy.fail("lose the answer", method="PUT", key=key, times=1)
    staged = put(remote.blobs, stage(tmp_path))
    assert remote.blobs.check(staged.digest) is BlobState.WHOLE
    assert remote.quarantined() == 0


def test_a_manifest_that_is_there_after_a_lost_answer_and_a_failed_retry_is_taken_for_stored(
    remote: RemotePlace, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.fail("lose the answer", method="PUT", key="manifest.json", times=1)
    proxy.fail("slow down", method="PUT", key="manifest.json")
    staged = put(remote.blobs, stage(tmp_path))
    assert remote.blobs.check(staged.digest) is BlobState.WHOLE


def test_a_put_that_broke_off_leaves_nothing_to_be_held_and_is_finished_by_the_next(
    remote: RemotePlace, proxy: FaultProxy, tmp_path: Path
) -> None:
    staged = stage(tmp_path)
    proxy.fail("refuse", method="PUT", key="manifest.json")
    with pytest.raises(StorageError):
        put(remote.blobs, staged)
    proxy.mend()
    assert remote.blobs.check(staged.digest) is BlobState.MISSING
    put(remote.blobs, staged)
    assert weights(remote.blobs, staged.digest) == staged.contents[FILES[1]]


@pytest.mark.parametrize("failure", ["cut the body", "flip a bit", "slow down"])
def test_an_answer_that_was_spoilt_once_is_fetched_again(
    remote: RemotePlace, proxy: FaultProxy, tmp_path: Path, failure: Failure
) -> None:
    staged = put(remote.blobs, stage(tmp_path))
    proxy.fail(failure, method="GET", key=FILES[1], times=1)
    assert weights(remote.blobs, staged.digest) == staged.contents[FILES[1]]


@pytest.mark.parametrize(
    ("failure", "code"),
    [("cut the body", "storage_unavailable"), ("flip a bit", "blob_damaged"), ("forget", "storage_unavailable")],
)
def test_an_answer_that_is_always_spoilt_is_never_served(
    remote: RemotePlace, proxy: FaultProxy, tmp_path: Path, failure: Failure, code: str
) -> None:
    staged = put(remote.blobs, stage(tmp_path))
    proxy.fail(failure, method="GET", key=FILES[1])
    with pytest.raises(StorageError) as caught:
        weights(remote.blobs, staged.digest)
    assert caught.value.code == code
    assert list((remote.root / "sha256").iterdir()) == []
    assert remote.staged() == []
    proxy.mend()
    assert weights(remote.blobs, staged.digest) == staged.contents[FILES[1]]


@pytest.mark.parametrize("failure", ["forget", "cut the body", "slow down"])
def test_a_check_that_could_not_read_condemns_nothing(
    remote: RemotePlace, proxy: FaultProxy, tmp_path: Path, failure: Failure
) -> None:
    staged = put(remote.blobs, stage(tmp_path))
    proxy.fail(failure, method="GET", key=FILES[1])
    with pytest.raises(StorageError):
        remote.blobs.check(staged.digest)
    proxy.mend()
    assert remote.blobs.check(staged.digest) is BlobState.WHOLE


def test_a_blob_that_is_mended_while_it_is_checked_is_not_set_aside(remote: RemotePlace, tmp_path: Path) -> None:
    staged = put(remote.blobs, stage(tmp_path))
    remote.write(staged.digest, FILES[1], b"damaged")

    class MendedMeanwhile(type(remote.objects)):  # type: ignore[misc]
        lists = 0

        def list(self, folder: str) -> object:
            self.lists += 1
            if self.lists == 2:
                remote.objects.put(f"{folder}/{FILES[1]}", staged.contents[FILES[1]])
            return super().list(folder)

    racing = MendedMeanwhile(BUCKET, remote.prefix, endpoint=remote.endpoint, patience=QUICK)
    assert RemoteBlobs(racing, remote.cache).check(staged.digest) is BlobState.WHOLE
    assert remote.quarantined() == 0


def test_a_put_is_not_acknowledged_if_its_files_were_deleted_under_it(remote: RemotePlace, tmp_path: Path) -> None:
    class DeletedMeanwhile(type(remote.objects)):  # type: ignore[misc]
        def create(self, key: str, content: bytes) -> bool:
            remote.objects.delete([key.replace("manifest.json", FILES[1])])
            return bool(super().create(key, content))

    racing = DeletedMeanwhile(BUCKET, remote.prefix, endpoint=remote.endpoint, patience=QUICK)
    staged = stage(tmp_path)
    with pytest.raises(StorageError, match="publish them again"):
        put(RemoteBlobs(racing, remote.cache), staged)
    put(remote.blobs, staged)
    assert weights(remote.blobs, staged.digest) == staged.contents[FILES[1]]


def test_a_delete_that_broke_off_leaves_nothing_to_be_held(remote: RemotePlace, tmp_path: Path) -> None:
    class BreaksOff(type(remote.objects)):  # type: ignore[misc]
        deletes = 0

        def delete(self, keys: Sequence[str], *, at_a_glance: bool = False) -> None:
            self.deletes += 1
            if self.deletes > 1:
                raise StorageError("The store failed.")
            super().delete(keys, at_a_glance=at_a_glance)

    staged = put(remote.blobs, stage(tmp_path))
    breaking_off = BreaksOff(BUCKET, remote.prefix, endpoint=remote.endpoint, patience=QUICK)
    with pytest.raises(StorageError):
        RemoteBlobs(breaking_off, remote.cache).delete(staged.digest)
    with pytest.raises(NotFoundError):
        weights(remote.blobs, staged.digest)
    put(remote.blobs, staged)
    assert weights(remote.blobs, staged.digest) == staged.contents[FILES[1]]


def test_many_that_want_a_cold_blob_at_once_fetch_it_once(
    remote: RemotePlace, proxy: FaultProxy, tmp_path: Path
) -> None:
    staged = put(remote.blobs, stage(tmp_path))
    asked = proxy.requests["GET"]
    blobs = remote.blobs
    with ThreadPoolExecutor(8) as pool:
        held = list(pool.map(lambda _: weights(blobs, staged.digest), range(16)))
    assert held == [staged.contents[FILES[1]]] * 16
    assert proxy.requests["GET"] - asked == 1 + len(FILES) + 1  # the list, the files and the manifest


def test_what_another_machine_deleted_stays_for_who_holds_it(remote: RemotePlace, tmp_path: Path) -> None:
    staged = put(remote.blobs, stage(tmp_path))
    with remote.blobs.hold(staged.digest) as folder:
        assert remote.opened_again().delete(staged.digest)
        assert (folder / FILES[1]).read_bytes() == staged.contents[FILES[1]]


def test_a_damaged_blob_leaves_the_cache_too_if_its_entry_is_damaged(remote: RemotePlace, tmp_path: Path) -> None:
    staged = put(remote.blobs, stage(tmp_path))
    with remote.blobs.hold(staged.digest) as folder:
        pass
    spoil(folder / FILES[1])
    remote.overwrite(staged.digest, FILES[1], b"damaged")
    assert remote.blobs.check(staged.digest) is BlobState.DAMAGED
    assert list((remote.root / "sha256").iterdir()) == []


def test_a_damaged_blob_is_mended_from_a_whole_entry_of_the_cache(remote: RemotePlace, tmp_path: Path) -> None:
    staged = put(remote.blobs, stage(tmp_path))
    weights(remote.blobs, staged.digest)
    remote.overwrite(staged.digest, FILES[1], b"damaged")
    remote.overwrite(staged.digest, "stray.bin", b"not its own")
    assert remote.blobs.check(staged.digest) is BlobState.MENDED
    assert remote.quarantined() == 1
    assert remote.blobs.check(staged.digest) is BlobState.WHOLE
    assert weights(remote.opened_again(), staged.digest) == staged.contents[FILES[1]]
    assert set(remote.read(staged.digest)) == {*FILES, "manifest.json"}


def test_a_damaged_manifest_of_another_size_gives_way_at_once(remote: RemotePlace, tmp_path: Path) -> None:
    staged = put(remote.blobs, stage(tmp_path))
    manifest = remote.read(staged.digest)["manifest.json"]
    remote.write(staged.digest, "manifest.json", manifest + b" " * 100)
    remote.write(staged.digest, FILES[1], b"damaged")
    put(remote.blobs, staged)
    assert remote.read(staged.digest) == {**staged.contents, "manifest.json": manifest}


def test_a_disk_that_fills_while_a_blob_is_fetched_is_told_and_left_clean(remote: RemotePlace, tmp_path: Path) -> None:
    staged = put(remote.blobs, stage(tmp_path, size_bytes=2 << 20))
    with no_file_larger_than(1 << 20), pytest.raises(StorageError) as caught:
        weights(remote.blobs, staged.digest)
    assert caught.value.code == "insufficient_storage"
    assert str(tmp_path) not in caught.value.message
    assert remote.staged() == []
    assert weights(remote.blobs, staged.digest) == staged.contents[FILES[1]]


def test_a_registry_on_an_object_store_acknowledges_only_what_it_holds(proxy: FaultProxy, tmp_path: Path) -> None:
    operator = Caller.operator()
    url = f"s3://{BUCKET}/{uuid4().hex}"
    with open_registry(tmp_path / "home", store_url=url, store_endpoint=proxy.endpoint) as registry:
        registry.tenants.create(operator, "acme")
        registry.bases.add(operator, make_base())
        members = folder_members(make_adapter_folder(tmp_path / "adapter", make_base()))
        version = registry.versions.publish(operator, "acme", "support", members, base="tiny").version
        with registry.hold(version.manifest.digest) as folder:
            assert folder.is_relative_to(tmp_path / "home" / "cache")
            assert digest_folder(folder) == version.manifest.digest
        assert [blob.state for blob in registry.verify(operator)] == [BlobState.WHOLE]
        proxy.fail("refuse")
        members = folder_members(make_adapter_folder(tmp_path / "another", make_base(), seed=1))
        with pytest.raises(StorageError):
            registry.versions.publish(operator, "acme", "support", members, base="tiny")
        assert [one.number for one in registry.versions.list(operator, "acme", "support")] == [1]
