"""What many do to one adapter at once could have been done one after the other, and nothing of it is lost."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import select, update

from adapters import (
    Alias,
    Base,
    Caller,
    ProbeVerdict,
    Registry,
    Version,
    VersionState,
    folder_members,
    open_registry,
)
from adapters.digests import digest_folder
from adapters.schema import BLOBS, VERSIONS
from tests.adapters.conftest import Execute, Publish
from tests.adapters.racing import ADAPTER, OPERATOR, SEEDS, Did, race
from tests.builders import make_adapter_folder

MOVES = {"promote", "compare and set", "roll back"}
REFUSALS = {
    "promote": {"version_not_ready", "conflict"},
    "compare and set": {"version_not_ready", "version_conflict", "conflict"},
    "roll back": {"nothing_to_roll_back", "conflict"},
    "retire": {"version_in_use", "conflict"},
    "restore": {"blob_collected", "conflict"},
    "publish": {"blob_collected", "conflict"},
    "collect": {"conflict"},
}


@pytest.fixture
def uploads(tmp_path: Path, base: Base) -> Path:
    for seed in SEEDS:
        make_adapter_folder(tmp_path / "uploads" / str(seed), base, rank=2, modules=("q_proj",), seed=seed)
    return tmp_path / "uploads"


@pytest.fixture
def raced(
    registry: Registry, home: Path, database_url: str | None, uploads: Path, base: Base, request: pytest.FixtureRequest
) -> list[Did]:
    for seed in (0, 1):
        registry.versions.publish(
            OPERATOR, *ADAPTER, folder_members(uploads / str(seed)), base=base.fingerprint, origin={"seed": seed}
        )
    registry.aliases.promote(OPERATOR, *ADAPTER, 1)
    rounds: int = request.param
    return race(home, database_url, uploads, processes=2, threads=4, rounds=rounds, seed=1)


def check_history(registry: Registry, done: Sequence[Did]) -> None:
    assert [did for did in done if did.is_unknown] == []
    assert [did for did in done if did.code and did.code not in REFUSALS.get(did.kind, ())] == []
    check_moves(registry, [did for did in done if did.kind in MOVES and did.code is None])
    check_numbers(registry, [did for did in done if did.kind == "publish" and did.code is None])
    check_resolved(done)
    assert {did.told[2] for did in done if did.kind == "look"} <= {"ready", "unprobed"}
    for version in registry.versions.list(OPERATOR, *ADAPTER):
        if version.state.is_servable:
            with registry.hold(version.manifest.digest) as folder:
                assert digest_folder(folder) == version.manifest.digest


def check_moves(registry: Registry, moves: Sequence[Did]) -> None:
    """Each revision is one move: somebody's, who was told of it, and no two were told otherwise."""
    live = registry.adapters.get(OPERATOR, *ADAPTER).live
    assert live is not None
    arms = defaultdict(set, {1: {registry.aliases.history(OPERATOR, *ADAPTER, before=2)[0].arms}})
    for did in moves:
        arms[did.told.revision].add(did.told.arms)
    assert sorted(arms) == list(range(1, live.revision + 1))
    assert {len(told) for told in arms.values()} == {1}
    assert arms[live.revision] == {live.arms}
    for revision, after in pairwise(sorted(arms)):
        assert arms[revision] != arms[after], "a move that went nowhere"
    # Nobody's update was lost: who moved it on from the revision that it saw, did so alone.
    moved = [did.asked[1] for did in moves if did.kind == "compare and set" and did.told.revision == did.asked[1] + 1]
    assert max(Counter(moved).values(), default=1) == 1
    assert all(did.told.revision - did.asked[1] in {0, 1} for did in moves if did.kind == "compare and set")


def check_numbers(registry: Registry, published: Sequence[Did]) -> None:
    """The same bytes are the same version, and versions are numbered from 1 without a gap."""
    versions = registry.versions.list(OPERATOR, *ADAPTER)
    assert sorted(version.number for version in versions) == list(range(1, len(versions) + 1))
    numbers = {version.origin["seed"]: version.number for version in versions}
    assert len(numbers) == len(versions)
    assert all(did.told.version.number == numbers[did.asked] for did in published)
    assert max(Counter(did.asked for did in published if did.told.is_new).values(), default=1) == 1


def check_resolved(done: Sequence[Did]) -> None:
    """Who resolved the name got what it meant at some moment between question and answer."""
    moves = [did for did in done if did.kind in MOVES and did.code is None]
    numbers = {1: 1}
    began: dict[int, int] = {1: 0}
    ended: dict[int, int] = {1: 0}
    for did in moves:
        alias: Alias = did.told
        numbers[alias.revision] = alias.version or 0
        began[alias.revision] = min(began.get(alias.revision, did.began_ns), did.began_ns)
        ended[alias.revision] = min(ended.get(alias.revision, did.ended_ns), did.ended_ns)
    for did in done:
        if did.kind == "resolve":
            possible = {
                number
                for revision, number in numbers.items()
                if began[revision] <= did.ended_ns and ended.get(revision + 1, did.ended_ns) >= did.began_ns
            }
            assert did.told in possible


@pytest.mark.parametrize("raced", [20], indirect=True)
def test_many_who_change_one_adapter_at_once_lose_nothing(registry: Registry, raced: list[Did]) -> None:
    check_history(registry, raced)


@pytest.mark.slow
@pytest.mark.parametrize("raced", [300], indirect=True)
def test_many_who_change_one_adapter_at_once_lose_nothing_for_long(registry: Registry, raced: list[Did]) -> None:
    check_history(registry, raced)


def test_bytes_that_are_needed_again_at_the_last_moment_are_not_collected(
    registry: Registry, publish: Publish, admin: Caller, new_waiter: Callable[[], None]
) -> None:
    version = publish().version
    registry.versions.retire(admin, "acme", "support", 1)
    check_needed_again(registry, version, new_waiter)


@pytest.mark.parametrize("database", ["postgresql"])
def test_nor_are_they_where_the_database_isolates_transactions_otherwise(
    registry: Registry, publish: Publish, admin: Caller, execute: Execute, new_waiter: Callable[[], None]
) -> None:
    version = publish().version
    registry.versions.retire(admin, "acme", "support", 1)
    by_default = "SET default_transaction_isolation = ''repeatable read''"
    execute(f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I {by_default}', current_database()); END $$")
    registry.close()  # and its next connections are new ones
    check_needed_again(registry, version, new_waiter)


def check_needed_again(registry: Registry, version: Version, new_waiter: Callable[[], None]) -> None:
    needed = update(VERSIONS).where(VERSIONS.c.id == version.id).values(state=VersionState.READY.value)
    with ThreadPoolExecutor(1) as pool:
        with registry._database.write() as connection:
            # As a restore does it, in a process that holds nothing on this disk.
            connection.execute(select(BLOBS).with_for_update())
            connection.execute(needed)
            collected = pool.submit(lambda: list(registry.collect(Caller.operator(), grace_seconds=0)))
            new_waiter()
        assert collected.result() == []
    with registry.hold(version.manifest.digest):
        pass


@pytest.mark.parametrize("database", ["postgresql"])
def test_a_verdict_and_what_a_person_does_at_that_moment_do_not_block_each_other(
    registry: Registry, publish: Publish, operator: Caller
) -> None:
    def reject(version: Version) -> object:
        return registry.versions.record_probe(Caller.server(), version.id, ProbeVerdict(is_accepted=False))

    def retire(version: Version) -> object:
        return registry.versions.retire(operator, "acme", "support", version.number)

    def publish_again(_: Version) -> object:
        return publish(seed=1, probe=lambda *_: ProbeVerdict(is_accepted=True))

    def together(other: Callable[[Version], object], version: Version) -> None:
        start = threading.Barrier(2)

        def run(what: Callable[[Version], object]) -> None:
            start.wait()
            what(version)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(run, (reject, other)))

    version = publish(seed=1).version
    for other in [retire, publish_again] * 15:
        together(other, version)
        if registry.versions.get(operator, "acme", "support", 1).state is not VersionState.RETIRED:
            retire(version)
        publish(seed=1)
        version = registry.versions.restore(operator, "acme", "support", 1)


@pytest.fixture
def new_waiter(database: str, execute: Execute) -> Callable[[], None]:
    """Waits until somebody waits for a lock, where the database tells; SQLite's writers wait before they look."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

    def wait() -> None:
        pause = threading.Event()
        while database == "postgresql" and execute(query) == [(0,)]:
            pause.wait(0.01)

    return wait


def test_two_processes_see_each_others_moves(
    registry: Registry, publish: Publish, admin: Caller, home: Path, database_url: str | None
) -> None:
    publish(seed=0)
    publish(seed=1)
    with open_registry(home, database_url) as other:
        registry.aliases.promote(admin, "acme", "support", 1)
        assert other.aliases.promote(admin, "acme", "support", 2, expected_revision=1).revision == 2
        assert registry.aliases.rollback(admin, "acme", "support", expected_revision=2).version == 1
