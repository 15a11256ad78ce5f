"""What the engine's word on a version does to it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from adapters import (
    Caller,
    Manifest,
    NotFoundError,
    ProbeVerdict,
    RefusedError,
    Registry,
    VersionState,
)
from tests.adapters.conftest import Publish


def test_a_version_published_without_an_engine_is_unprobed(
    registry: Registry, publish: Publish, admin: Caller, user: Caller
) -> None:
    assert publish().version.state is VersionState.UNPROBED
    registry.aliases.promote(admin, "acme", "support", 1)
    assert not registry.resolve(user, "support").is_probed


def test_a_probe_sees_the_canonical_files_and_makes_the_version_ready(publish: Publish) -> None:
    seen: list[Any] = []

    def probe(folder: Path, manifest: Manifest) -> ProbeVerdict:
        seen.append((json.loads((folder / "adapter_config.json").read_bytes())["r"], manifest.rank))
        return ProbeVerdict(is_accepted=True, warnings=("slow",))

    version = publish(probe=probe).version
    assert seen == [(8, 8)]
    assert (version.state, version.warnings) == (VersionState.READY, ("slow",))


def test_a_probe_that_fails_leaves_nothing_behind(
    registry: Registry, publish: Publish, admin: Caller, home: Path
) -> None:
    with pytest.raises(RefusedError, match="gave NaN") as caught:
        publish(probe=lambda _folder, _manifest: ProbeVerdict(is_accepted=False, reason="it gave NaN."))
    assert caught.value.code == "probe_failed"
    assert registry.adapters.list(admin, "acme") == []
    assert list((home / "store" / "sha256").iterdir()) == list((home / "store" / "staging").iterdir()) == []


def test_a_probe_that_breaks_leaves_nothing_behind(publish: Publish, home: Path) -> None:
    def probe(_folder: Path, _manifest: Manifest) -> ProbeVerdict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(probe=probe)
    assert list((home / "store" / "sha256").iterdir()) == list((home / "store" / "staging").iterdir()) == []


def test_a_probes_own_error_is_not_taken_for_the_disks(publish: Publish) -> None:
    def probe(_folder: Path, _manifest: Manifest) -> ProbeVerdict:
        raise TimeoutError("the engine is busy")  # an OSError, too

    with pytest.raises(TimeoutError, match="the engine is busy"):
        publish(probe=probe)


@pytest.mark.parametrize(
    ("is_accepted", "state"), [(True, VersionState.READY), (False, VersionState.REJECTED)], ids=["accepted", "rejected"]
)
def test_the_servers_first_load_settles_an_unprobed_version(
    registry: Registry, publish: Publish, admin: Caller, *, is_accepted: bool, state: VersionState
) -> None:
    version = publish().version
    registry.versions.record_probe(Caller.server(), version.id, ProbeVerdict(is_accepted=is_accepted, warnings=("w",)))
    settled = registry.versions.get(admin, "acme", "support", 1)
    assert settled == dataclasses.replace(version, state=state, warnings=("w",))


def test_a_verdict_on_a_settled_version_changes_nothing(registry: Registry, publish: Publish, admin: Caller) -> None:
    version = publish(probe=lambda _folder, _manifest: ProbeVerdict(is_accepted=True)).version
    rows = registry.audit(admin)
    now = registry.versions.record_probe(Caller.server(), version.id, ProbeVerdict(is_accepted=False))
    assert now == registry.versions.get(admin, "acme", "support", 1) == version
    assert registry.audit(admin) == rows


def test_a_verdict_on_no_version_is_not_found(registry: Registry) -> None:
    with pytest.raises(NotFoundError) as caught:
        registry.versions.record_probe(Caller.server(), 12345, ProbeVerdict(is_accepted=False))
    assert caught.value.code == "version_not_found"


def test_who_is_late_with_a_verdict_is_told_the_one_that_stands(
    registry: Registry, publish: Publish, admin: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = publish().version
    write = registry._database.write

    def write_late() -> Any:
        monkeypatch.undo()
        registry.versions.record_probe(Caller.server(), version.id, ProbeVerdict(is_accepted=True))
        return write()

    monkeypatch.setattr(registry._database, "write", write_late)
    late = registry.versions.record_probe(Caller.server(), version.id, ProbeVerdict(is_accepted=False))
    assert late.state is VersionState.READY
    assert [row.detail["is_accepted"] for row in registry.audit(admin) if row.action == "version.probe"] == [True]


def test_the_audit_keeps_not_all_of_what_an_engine_says(registry: Registry, publish: Publish, admin: Caller) -> None:
    version = publish().version
    registry.versions.record_probe(Caller.server(), version.id, ProbeVerdict(is_accepted=False, reason="x" * 10_000))
    assert len(registry.audit(admin, limit=1)[0].detail["reason"]) == 500


@pytest.mark.parametrize("is_accepted", [True, False])
def test_a_verdict_lifts_neither_a_rejected_nor_a_retired_version(
    registry: Registry, publish: Publish, admin: Caller, *, is_accepted: bool
) -> None:
    rejected, retired = publish(seed=1).version, publish(seed=2).version
    registry.versions.record_probe(Caller.server(), rejected.id, ProbeVerdict(is_accepted=False))
    registry.versions.retire(admin, "acme", "support", retired.number)
    for version in (rejected, retired):
        registry.versions.record_probe(
            Caller.server(), version.id, ProbeVerdict(is_accepted=is_accepted, warnings=("late",))
        )
    settled = [(version.state, version.warnings) for version in registry.versions.list(admin, "acme", "support")]
    assert settled == [(VersionState.RETIRED, ()), (VersionState.REJECTED, ())]


def test_publishing_again_with_an_engine_lifts_a_rejected_version_and_no_retired_one(
    registry: Registry, publish: Publish, admin: Caller
) -> None:
    rejected, retired = publish(seed=1).version, publish(seed=2).version
    registry.versions.record_probe(Caller.server(), rejected.id, ProbeVerdict(is_accepted=False))
    registry.versions.retire(admin, "acme", "support", retired.number)
    again = [publish(seed=seed, probe=lambda *_: ProbeVerdict(is_accepted=True)).version.state for seed in (1, 2)]
    assert again == [VersionState.READY, VersionState.RETIRED]


def test_publishing_again_with_an_engine_settles_an_unprobed_version(publish: Publish) -> None:
    publish()
    again = publish(probe=lambda _folder, _manifest: ProbeVerdict(is_accepted=True))
    assert (again.is_new, again.version.state) == (False, VersionState.READY)
