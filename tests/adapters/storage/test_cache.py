"""The cache is within its budget, evicts nothing that is held, and gives only the right bytes."""

import fcntl
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from random import Random
from threading import Barrier, Event

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from adapters import NotFoundError, StorageError
from adapters.digests import digest_folder
from adapters.manifests import write_manifest
from adapters.storage.cache import Cache, Incoming
from tests.adapters.storage.conftest import FILES, Staged, spoil, stage


class Source:
    """Somewhere that blobs come from, with a count of how often."""

    def __init__(self, root: Path, count: int = 1) -> None:
        self.blobs: dict[str, Staged] = {}
        self.fetched: list[str] = []
        for seed in range(count):
            staged = stage(root, seed, size_bytes=1000 * (seed + 1))
            write_manifest(staged.folder / "manifest.json", staged.manifest)
            self.blobs[staged.digest] = staged

    @property
    def digest(self) -> str:
        return next(iter(self.blobs))

    def size_of(self, digest: str) -> int:
        return sum(path.stat().st_size for path in self.blobs[digest].folder.iterdir())

    def find(self, digest: str) -> Incoming:
        if digest not in self.blobs:
            raise NotFoundError("There is nothing with this digest.", code="digest_not_found")
        return Incoming(self.size_of(digest), lambda folder: self._fetch(digest, folder))

    def _fetch(self, digest: str, folder: Path) -> None:
        self.fetched.append(digest)
        for path in self.blobs[digest].folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())


def cached(root: Path) -> dict[str, int]:
    """What lies in the cache: digests with their sizes."""
    return {
        f"sha256:{entry.name}": sum(path.stat().st_size for path in entry.iterdir())
        for entry in (root / "sha256").iterdir()
    }


def spoil_entry(root: Path, digest: str) -> None:
    spoil(root / "sha256" / digest.removeprefix("sha256:") / FILES[1])


BUDGET = 9000  # of the six blobs, with some 1,400 to 6,400 bytes each, two to five


class CacheMachine(RuleBasedStateMachine):
    """Hold, give back, spoil, forget, reopen, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folders = ExitStack()
        self.held: list[tuple[str, Path, ExitStack]] = []

    @initialize()
    def begin(self) -> None:
        root = Path(self.folders.enter_context(tempfile.TemporaryDirectory()))
        self.root = root / "cache"
        self.source = Source(root / "source", count=6)
        self.cache = Cache(self.root, budget_bytes=BUDGET)

    @rule(index=st.integers(0, 5))
    def hold(self, index: int) -> None:
        digest = list(self.source.blobs)[index]
        stack = ExitStack()
        self.held.append((digest, stack.enter_context(self.cache.hold(digest, self.source.find)), stack))

    @precondition(lambda self: self.held)
    @rule(pick=st.randoms(use_true_random=False))
    def give_back(self, pick: Random) -> None:
        self.held.pop(pick.randrange(len(self.held)))[2].close()

    @rule(index=st.integers(0, 5))
    def spoil(self, index: int) -> None:
        digest = list(self.source.blobs)[index]
        if digest in cached(self.root).keys() - {one for one, _, _ in self.held}:
            spoil_entry(self.root, digest)

    @rule(index=st.integers(0, 5))
    def drop(self, index: int) -> None:
        digest = list(self.source.blobs)[index]
        assert self.cache.drop(digest) == (digest not in {one for one, _, _ in self.held})

    @rule()
    def open_again(self) -> None:
        self.cache = Cache(self.root, budget_bytes=BUDGET)

    @invariant()
    def what_is_held_is_there_and_right(self) -> None:
        for digest, folder, _ in self.held:
            assert digest_folder(folder) == digest

    @invariant()
    def the_rest_is_within_the_budget(self) -> None:
        if hasattr(self, "root"):
            sizes = cached(self.root)
            held = {digest for digest, _, _ in self.held}
            assert sum(sizes.values()) <= BUDGET or sizes.keys() <= held
            assert list((self.root / "staging").iterdir()) == []
            assert list((self.root / "flights").iterdir()) == []

    def teardown(self) -> None:
        for _, _, stack in self.held:
            stack.close()
        self.folders.close()


CacheMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20)
TestCache = CacheMachine.TestCase


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    source = Source(tmp_path / "source", count=3)
    first, second, third = source.blobs
    cache = Cache(tmp_path / "cache", budget_bytes=sum(source.size_of(one) for one in (first, second, third)) - 1)
    for age, digest in ((3, first), (2, second)):
        with cache.hold(digest, source.find) as folder:
            pass
        os.utime(folder, (age, age))
    with cache.hold(third, source.find):
        assert set(cached(tmp_path / "cache")) == {first, third}


def test_it_tells_how_full_it_is(tmp_path: Path) -> None:
    source, cache = Source(tmp_path, count=2), Cache(tmp_path / "cache", budget_bytes=9000)
    assert (cache.use().size_bytes, cache.use().budget_bytes) == (0, 9000)
    for digest in source.blobs:
        with cache.hold(digest, source.find):
            pass
    assert cache.use().size_bytes == sum(map(source.size_of, source.blobs))


def test_what_is_held_again_is_used_again(tmp_path: Path) -> None:
    source = Source(tmp_path / "source", count=3)
    first, second, third = source.blobs
    cache = Cache(tmp_path / "cache", budget_bytes=sum(source.size_of(one) for one in (first, second, third)) - 1)
    for digest in (first, second):
        with cache.hold(digest, source.find) as folder:
            pass
        os.utime(folder, (1, 1))
    with cache.hold(first, source.find):
        pass
    with cache.hold(third, source.find):
        assert set(cached(tmp_path / "cache")) == {first, third}


def test_a_blob_larger_than_the_budget_is_there_while_it_is_held(tmp_path: Path) -> None:
    source = Source(tmp_path / "source")
    cache = Cache(tmp_path / "cache", budget_bytes=1)
    with cache.hold(source.digest, source.find) as folder:
        assert (folder / FILES[1]).read_bytes() == source.blobs[source.digest].contents[FILES[1]]
    assert cached(tmp_path / "cache") == {}


def test_a_spoilt_entry_is_fetched_again_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Source(tmp_path / "source")
    cache = Cache(tmp_path / "cache", budget_bytes=1 << 20)
    with cache.hold(source.digest, source.find):
        spoil_entry(tmp_path / "cache", source.digest)
        with cache.hold(source.digest, source.find) as folder:
            assert digest_folder(folder) == source.digest
    assert source.fetched == [source.digest] * 2
    assert "have changed" in caplog.text


def test_an_entry_that_was_replaced_while_it_was_being_locked_is_locked_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(tmp_path / "source")
    cache = Cache(tmp_path / "cache", budget_bytes=1 << 20)
    with cache.hold(source.digest, source.find) as folder:
        pass
    flock = fcntl.flock
    replaced: list[Path] = []

    def replaced_first(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_SH and not replaced:
            replaced.append(folder.rename(tmp_path / "evicted"))
            shutil.copytree(tmp_path / "evicted", folder)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", replaced_first)
    with cache.hold(source.digest, source.find):
        assert replaced
        assert not cache.drop(source.digest)


def test_a_fetch_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def break_off(folder: Path) -> None:
        (folder / FILES[0]).write_bytes(b"half")
        raise StorageError("The store failed.")

    cache = Cache(tmp_path, budget_bytes=1 << 20)
    with (
        pytest.raises(StorageError, match="The store failed"),
        cache.hold("sha256:" + "a" * 64, lambda _: Incoming(4, break_off)),
    ):
        pass
    assert [list((tmp_path / name).iterdir()) for name in ("sha256", "staging", "flights")] == [[], [], []]


def test_a_cold_blob_does_not_keep_a_cached_one_waiting(tmp_path: Path) -> None:
    source = Source(tmp_path / "source", count=2)
    cold, cached_one = source.blobs
    cache = Cache(tmp_path / "cache", budget_bytes=1 << 20)
    begun, finish = Event(), Event()

    def fetch_slowly(folder: Path) -> None:
        begun.set()
        assert finish.wait(60)
        source.find(cold).fetch(folder)

    def hold_cold() -> None:
        with cache.hold(cold, lambda _: Incoming(source.size_of(cold), fetch_slowly)):
            pass

    with cache.hold(cached_one, source.find):
        pass
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(hold_cold)
        assert begun.wait(60)
        with cache.hold(cached_one, source.find):
            assert not running.done()
        finish.set()
        running.result()


def test_many_threads_in_a_small_cache_always_get_the_right_bytes(tmp_path: Path) -> None:
    source = Source(tmp_path / "source", count=6)
    cache = Cache(tmp_path / "cache", budget_bytes=5000)
    start = Barrier(6)

    def hold_all(offset: int) -> None:
        start.wait()
        digests = list(source.blobs)
        for digest in (digests[offset:] + digests[:offset]) * 5:
            with cache.hold(digest, source.find) as folder:
                assert digest_folder(folder) == digest

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(hold_all, range(6)))
    assert sum(cached(tmp_path / "cache").values()) <= 5000


def _hold_and_count(root: Path, index: int) -> int:
    source = Source(root / str(index))
    with Cache(root / "cache", budget_bytes=1 << 20).hold(source.digest, source.find) as folder:
        assert digest_folder(folder) == source.digest
    return len(source.fetched)


def test_processes_that_want_the_same_blob_fetch_it_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert sum(pool.map(_hold_and_count, [tmp_path] * 2, range(2))) == 1
