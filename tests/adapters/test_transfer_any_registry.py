"""Whatever was done to a registry, its export brings it back the same."""

import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters import (
    Arm,
    Caller,
    ConflictError,
    NotFoundError,
    ProbeVerdict,
    Registry,
    Scope,
    TenantLimits,
    folder_members,
    open_registry,
)
from adapters.schema import METADATA
from adapters.transfer import Transfer
from adapters.transfer.records import RECORDS, STREAMED
from tests.adapters.listings import everything
from tests.adapters.transferring import exported, imported
from tests.builders import make_adapter_folder, make_base

STEPS = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(["support", "sales"]), st.integers(0, 3)),
    st.tuples(st.just("promote"), st.sampled_from(["live", "canary"]), st.integers(1, 3)),
    st.tuples(st.just("split"), st.sampled_from(["live", "canary"]), st.integers(1, 9)),
    st.tuples(st.just("rollback"), st.sampled_from(["live", "canary"]), st.just(0)),
    st.tuples(st.sampled_from(["retire", "restore", "reject"]), st.just(""), st.integers(1, 3)),
    st.tuples(st.just("annotate"), st.text(st.characters(categories=["L", "N"]), max_size=9), st.integers(1, 3)),
    st.tuples(st.sampled_from(["grant", "take"]), st.sampled_from(["globex", "initech"]), st.just(0)),
    st.tuples(st.sampled_from(["key", "limits", "collect"]), st.just(""), st.integers(0, 3)),
)


def take_step(registry: Registry, folders: Path, what: str, word: str, number: int) -> None:
    operator, versions, aliases = Caller.operator(), registry.versions, registry.aliases
    support = (operator, "acme", "support")
    match what:
        case "publish":
            members = folder_members(folders / str(number))
            versions.publish(operator, "acme", word, members, base="tiny", origin={"seed": number})
        case "promote":
            aliases.promote(*support, number, alias=word)
        case "split":
            aliases.promote(*support, [Arm(1, number), Arm(2, 5)], alias=word)
        case "rollback":
            aliases.rollback(*support, alias=word)
        case "retire":
            versions.retire(*support, number)
        case "restore":
            versions.restore(*support, number)
        case "reject":
            versions.record_probe(operator, versions.get(*support, number).id, ProbeVerdict(is_accepted=False))
        case _:
            take_other_step(registry, what, word, number)


def take_other_step(registry: Registry, what: str, word: str, number: int) -> None:
    operator = Caller.operator()
    match what:
        case "annotate":
            registry.versions.annotate(operator, "acme", "support", number, tags=["t"], note=word)
        case "grant":
            registry.grants.give(operator, "acme", "support", word)
        case "take":
            registry.grants.take(operator, "acme", "support", word)
        case "key":
            tenant, scope = (None, Scope.PLATFORM) if number == 0 else ("acme", Scope.ADMIN)
            key = registry.keys.issue(operator, tenant, name="k", scopes=frozenset({scope})).key
            if number > 1:
                registry.keys.revoke(operator, tenant, key.id)
        case "limits":
            registry.tenants.set_limits(operator, "acme", TenantLimits(max_concurrency=number))
        case "collect":
            list(registry.collect(operator, grace_seconds=0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    for seed in range(4):
        make_adapter_folder(folder / str(seed), make_base(), rank=1, seed=seed)
    return folder


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=st.lists(STEPS, max_size=20))
def test_any_registry_comes_back_the_same_and_twice_is_once(
    prepared_home: Path, folders: Path, steps: list[tuple[str, str, int]]
) -> None:
    with TemporaryDirectory() as place:
        home, copy, other = (Path(place) / name for name in ("home", "copy", "other"))
        shutil.copytree(prepared_home, home)
        with open_registry(home) as registry, open_registry(other) as elsewhere:
            for step in [("publish", "support", 0), ("publish", "support", 1), *steps]:
                with suppress(ConflictError, NotFoundError):
                    take_step(registry, folders, *step)
            exported(registry, copy)
            imported(elsewhere, copy)
            assert imported(elsewhere, copy) == Transfer(0, 0, 0, 0, 0, 0)
            assert everything(elsewhere, without="registry.import") == everything(registry)
            outcomes = [_rolled_back(each) for each in (registry, elsewhere)]
            assert outcomes[0] == outcomes[1]


def _rolled_back(registry: Registry) -> list[tuple[Arm, ...]]:
    """All the way that aliases go back."""
    arms = []
    for alias in ("live", "canary"):
        with suppress(ConflictError):
            while True:
                arms.append(registry.aliases.rollback(Caller.operator(), "acme", "support", alias=alias).arms)
    return arms


def test_every_table_is_in_an_export_or_left_out_on_purpose() -> None:
    exported_tables = {"api_keys" if name == "keys" else name for name in (*RECORDS, *STREAMED)}
    on_its_way = {"idempotency", "uploads", "upload_files"}
    follows_from_the_bytes = {"blobs"}
    assert exported_tables | on_its_way | follows_from_the_bytes == set(METADATA.tables)
