"""A disk that is full, read-only or failing, a blob that is gone, a database that is away: told, survived, got over."""

import errno
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from adapters import (
    Base,
    BlobState,
    Caller,
    ConflictError,
    Limits,
    NotFoundError,
    Published,
    Registry,
    StorageError,
    folder_members,
    open_registry,
)
from adapters.database import Database
from adapters.storage import LocalBlobs
from tests.adapters.conftest import Publish
from tests.builders import folder_of, make_adapter_folder
from tests.crash.killer import FULL, READ_ONLY, Deed, Points, fail_once, watched
from tests.postgres import Postgres

OPERATOR = Caller.operator()
ROOM_BYTES = 1 << 20


@pytest.fixture
def repeat(registry: Registry, base: Base, tmp_path: Path) -> Callable[[], Published]:
    """Publish the same bytes under the same idempotency key, again and again."""
    folder = make_adapter_folder(tmp_path / "upload", base, rank=2, modules=("q_proj",))
    return partial(publish_keyed, registry, folder, base)


def publish_keyed(registry: Registry, folder: Path, base: Base) -> Published:
    caller = replace(OPERATOR, idempotency_key="once")
    return registry.versions.publish(caller, "acme", "support", folder_members(folder), base=base.fingerprint)


def points_of(publish: Callable[[], object], home: Path) -> list[str]:
    with watched(Points(home)) as points:
        publish()
    return points.names


def fail_from(publish: Callable[[], Published], home: Path, deed: Deed, at: int) -> str | None:
    """Publish on a disk that fails from the `at`-th point on: the StorageError's code; None if it was acknowledged."""
    try:
        with watched(Points(home, deed, at=at)):
            publish()
    except StorageError as error:
        return error.code
    return None


def adapters_of(registry: Registry) -> list[tuple[str, int]]:
    return [(adapter.name, adapter.version_count) for adapter in registry.adapters.list(OPERATOR, "acme")]


@pytest.mark.parametrize(
    ("deed", "code", "is_clean"),
    [(FULL, "insufficient_storage", True), (READ_ONLY, "storage_unavailable", False)],
    ids=["full", "read-only"],
)
def test_a_disk_that_takes_no_more_is_told_at_every_step_and_got_over(
    registry: Registry, home: Path, repeat: Callable[[], Published], deed: Deed, code: str, *, is_clean: bool
) -> None:
    codes: list[str] = []
    while (told := fail_from(repeat, home, deed, len(codes) + 1)) is not None:
        codes.append(told)
        assert adapters_of(registry) == []
        assert list((home / "store" / "sha256").iterdir()) == [] or len(codes) > 10
        assert not is_clean or list((home / "store" / "staging").iterdir()) == []
    assert len(codes) > 10
    assert set(codes) == {code}
    assert repeat() == repeat()
    assert adapters_of(registry) == [("support", 1)]
    assert [blob.state for blob in registry.verify(OPERATOR)] == [BlobState.WHOLE]


def test_a_single_failure_is_never_tried_again_and_acknowledged(
    registry: Registry, home: Path, repeat: Callable[[], Published], tmp_path: Path, base: Base
) -> None:
    second = make_adapter_folder(tmp_path / "second", base, rank=2, modules=("q_proj",), seed=1)
    publish = partial(registry.versions.publish, OPERATOR, "acme", "second", base=base.fingerprint)
    names = points_of(lambda: publish(members=folder_members(second)), home)
    # From the rename on, the bytes are there: the next one finds them, and there is less to do.
    for at, name in enumerate(names[: names.index("rename") + 1], 1):
        if name not in {"commit", "committed"}:
            assert fail_from(repeat, home, fail_once(errno.EIO), at) == "storage_unavailable", name
            assert adapters_of(registry) == [("second", 1)]
    after_rename = names.index("rename") + 2
    assert (names[after_rename - 1], fail_from(repeat, home, fail_once(errno.EIO), after_rename)) == (
        "fsync",
        "storage_unavailable",
    )
    assert repeat().is_new
    assert {blob.state for blob in registry.verify(OPERATOR)} == {BlobState.WHOLE}


@pytest.mark.parametrize("point", ["commit", "committed"])
def test_a_call_whose_commit_was_not_answered_is_repeated_to_one_effect(
    registry: Registry, home: Path, repeat: Callable[[], Published], point: str
) -> None:
    names = points_of(lambda: registry.tenants.create(OPERATOR, "initech"), home)
    assert names == ["commit", "committed"]
    with pytest.raises(StorageError), watched(Points(home, partial(lose_line, point, []))):
        repeat()
    assert len(adapters_of(registry)) == int(point == "committed")
    assert repeat().is_new
    assert repeat().version.number == 1
    assert adapters_of(registry) == [("support", 1)]
    published = [row for row in registry.audit(OPERATOR) if row.action == "version.publish"]
    assert len(published) == 1


def lose_line(point: str, seen: list[str], _points: Points, name: str) -> None:
    """At the second commit, of the version's row; the first one announces the blob."""
    seen.extend([name] if name == point else [])
    if name == point and len(seen) == 2:
        raise OperationalError("COMMIT", {}, Exception("the line is dead"))


def test_a_blob_that_was_deleted_is_missed_alone_and_mended_by_its_bytes(registry: Registry, publish: Publish) -> None:
    lost, kept = (publish(seed=seed).version.manifest.digest for seed in (0, 1))
    shutil.rmtree(folder_of(registry, lost))
    with pytest.raises(NotFoundError):
        folder_of(registry, lost)
    folder_of(registry, kept)
    states = {blob.digest: blob.state for blob in registry.verify(OPERATOR)}
    assert states == {lost: BlobState.MISSING, kept: BlobState.WHOLE}
    assert not publish(seed=0).is_new
    folder_of(registry, lost)


def test_a_retired_version_is_not_restored_without_its_bytes(registry: Registry, publish: Publish) -> None:
    digest = publish().version.manifest.digest
    registry.versions.retire(OPERATOR, "acme", "support", 1)
    shutil.rmtree(folder_of(registry, digest))  # as a collection that died before it could strike the blob's row
    with pytest.raises(ConflictError) as caught:
        registry.versions.restore(OPERATOR, "acme", "support", 1)
    assert caught.value.code == "blob_collected"
    publish()
    assert registry.versions.restore(OPERATOR, "acme", "support", 1).state.is_servable


def test_while_another_program_locks_the_database_reads_go_on_and_nothing_is_half_done(
    prepared_home: Path, home: Path, base: Base, tmp_path: Path, user: Caller
) -> None:
    shutil.copytree(prepared_home, home)
    folder = make_adapter_folder(tmp_path / "upload", base)
    database = Database(f"sqlite:///{home / 'registry.db'}", wait_seconds=0.05)
    with Registry(database, LocalBlobs(home / "store"), home, Limits()) as registry:
        publish_keyed(registry, folder, base)
        registry.aliases.promote(OPERATOR, "acme", "support", 1)
        with closing(sqlite3.connect(home / "registry.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StorageError, match="busy; try again"):
                publish_keyed(registry, folder, base)
            assert registry.resolve(user, "support").number == 1
        assert list((home / "store" / "staging").iterdir()) == []
        assert not registry.versions.publish(
            OPERATOR, "acme", "support", folder_members(folder), base=base.fingerprint
        ).is_new


@pytest.mark.parametrize("point", ["mkdir", "fsync", "commit", "committed"])
def test_postgresql_that_dies_under_a_publish_loses_nothing(
    own_postgres: Postgres, home: Path, base: Base, tmp_path: Path, point: str
) -> None:
    folder = make_adapter_folder(tmp_path / "upload", base)
    with open_registry(home, own_postgres.url()) as registry:
        registry.tenants.create(OPERATOR, "acme")
        registry.bases.add(OPERATOR, base)
        with watched(Points(home, partial(kill_at, own_postgres, point))), pytest.raises(StorageError):
            publish_twice(registry, folder, base)
        assert list((home / "store" / "staging").iterdir()) == []
        own_postgres.start()
        assert publish_keyed(registry, folder, base).version.number == 1
        assert adapters_of(registry) == [("support", 1)]
        assert len([row for row in registry.audit(OPERATOR) if row.action == "version.publish"]) == 1


def publish_twice(registry: Registry, folder: Path, base: Base) -> None:
    """The second one fails if the database died just after it had committed the first."""
    for _ in range(2):
        publish_keyed(registry, folder, base)


def kill_at(postgres: Postgres, point: str, points: Points, name: str) -> None:
    if name == point:
        points.deed = None
        postgres.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only who may mount a file system has a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_really_full_refuses_and_takes_again_when_there_is_room(
    small_disk: Path, prepared_home: Path, base: Base, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(prepared_home, small_disk / "home"))
    folder = make_adapter_folder(tmp_path / "upload", base)
    codes = []
    with open_registry(home) as registry:
        registry.keys.list(OPERATOR, "acme")
        for room_bytes in range(0, ROOM_BYTES, 16 << 10):
            leave(small_disk, room_bytes)
            try:
                publish_keyed(registry, folder, base)
            except StorageError as error:
                codes.append(error.code)
                assert adapters_of(registry) == []
                assert list((home / "store" / "staging").iterdir()) == []
            else:
                break
        assert len(codes) > 2
        assert set(codes) == {"insufficient_storage"}
        assert adapters_of(registry) == [("support", 1)]
        assert [blob.state for blob in registry.verify(OPERATOR)] == [BlobState.WHOLE]


def leave(disk: Path, room_bytes: int) -> None:
    """Fill the disk up to this."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room_bytes)))
