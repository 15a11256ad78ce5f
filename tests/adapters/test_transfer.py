"""An export holds all that there is at one moment, and an import brings it back."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from adapters import (
    Arm,
    Base,
    BlobState,
    Caller,
    ConflictError,
    ForbiddenError,
    InvalidError,
    Kind,
    NotFoundError,
    ProbeVerdict,
    Registry,
    Scope,
    StorageError,
    TenantLimits,
    UsageRow,
    folder_members,
    open_registry,
)
from adapters.transfer import Transfer
from tests.adapters.conftest import Execute, Publish
from tests.adapters.listings import everything
from tests.adapters.transferring import change, edit, exported, imported
from tests.builders import make_adapter_folder, make_base, make_base_of, make_model_folder
from tests.postgres import why_there_is_none


@pytest.fixture
def elsewhere(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    """An empty registry, on PostgreSQL if `registry` is on SQLite, and the other way round."""
    url = None
    if database == "sqlite" and why_there_is_none() is None:
        url = request.getfixturevalue("new_postgresql")(request.getfixturevalue("migrated_postgresql"))
    with open_registry(tmp_path / "elsewhere", url) as opened:
        yield opened


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Where exports go."""
    return tmp_path / "backups" / "monday"


@pytest.fixture
def filled(registry: Registry, publish: Publish, operator: Caller) -> Registry:
    """Some of everything: splits and a stack, a retired version and a rejected one's absence, grants, limits, keys."""
    registry.tenants.set_limits(operator, "acme", TenantLimits(max_adapters=7, tokens_per_minute=1000))
    for seed in range(3):
        publish(seed=seed, origin={"method": "sft", "text": "naïve \ud800"}, parents=["support@1"] if seed else [])
    publish("sales", seed=1)
    publish("sales", tenant="globex", seed=5)
    for to in (1, 2, [Arm(2, 9), Arm(3, 1)]):
        registry.aliases.promote(operator, "acme", "support", to)
    registry.aliases.promote(operator, "acme", "support", 1, alias="canary")
    registry.aliases.rollback(operator, "acme", "support")
    registry.aliases.promote(operator, "globex", "sales", 1)
    registry.versions.annotate(operator, "acme", "support", 3, tags=["prod", "eu"], note="Größe 2\nüber alles")
    registry.versions.retire(operator, "acme", "support", 3)
    registry.grants.give(operator, "acme", "support", "globex")
    registry.usage.add(operator, [UsageRow(date(2026, 1, 2), "acme", "support", 1, "key-1", 3, 0, 99, 7)])
    registry.keys.issue(operator, None, name="platform", scopes=frozenset({Scope.PLATFORM}))
    return registry


def test_a_whole_registry_comes_back_the_same(filled: Registry, elsewhere: Registry, copy: Path) -> None:
    done = exported(filled, copy)
    assert (done.tenants, done.adapters, done.versions, done.blobs, done.blob_count) == (2, 3, 5, 4, 4)
    assert imported(elsewhere, copy) == replace(done, size_bytes=imported_bytes(filled))
    assert everything(elsewhere, without="registry.import") == everything(filled)
    assert [blob.state for blob in elsewhere.verify(Caller.operator())] == [BlobState.WHOLE] * 4


def imported_bytes(registry: Registry) -> int:
    """Of the blobs, without their manifests."""
    versions = everything(registry)["versions"]
    return sum({version["manifest"]["digest"]: version["manifest"]["size_bytes"] for version in versions}.values())


def test_what_was_imported_goes_on_as_it_would_have_before(
    filled: Registry, elsewhere: Registry, copy: Path, operator: Caller, user: Caller, tmp_path: Path, base: Base
) -> None:
    issued = filled.keys.issue(operator, "acme", name="app", scopes=frozenset({Scope.INFER}))
    exported(filled, copy)
    imported(elsewhere, copy)
    assert elsewhere.keys.authenticate(issued.secret).tenant == "acme"
    assert elsewhere.resolve(user, "support").number == 2
    assert elsewhere.aliases.rollback(operator, "acme", "support", expected_revision=4).version == 1
    assert elsewhere.versions.restore(operator, "acme", "support", 3).state == "unprobed"
    again = elsewhere.versions.publish(
        operator, "acme", "support", folder_members(tmp_path / "adapters" / "0"), base=base.fingerprint
    )
    assert (again.is_new, again.version.number) == (False, 1)
    new = make_adapter_folder(tmp_path / "new", base, seed=99)
    assert elsewhere.versions.publish(operator, "acme", "support", folder_members(new), base="tiny").version.number == 4


def test_the_same_import_again_changes_nothing(filled: Registry, elsewhere: Registry, copy: Path) -> None:
    exported(filled, copy)
    imported(elsewhere, copy)
    before = everything(elsewhere)
    assert imported(elsewhere, copy) == Transfer(0, 0, 0, 0, 0, 0)
    assert everything(elsewhere) == before
    imported(filled, copy)


def test_an_alias_that_was_removed_is_none_after_an_import_and_keeps_its_past(
    filled: Registry, elsewhere: Registry, copy: Path, operator: Caller
) -> None:
    revision = filled.aliases.remove(operator, "acme", "support", "live").revision
    exported(filled, copy)
    imported(elsewhere, copy)
    assert [alias.name for alias in elsewhere.adapters.get(operator, "acme", "support").aliases] == ["canary"]
    anew = elsewhere.aliases.promote(operator, "acme", "support", 2)
    assert anew.revision > revision
    assert [move.number for move in elsewhere.aliases.history(operator, "acme", "support")] == [4, 3, 2, 1]


def test_everybody_meets_the_same_arm_after_an_import(
    filled: Registry, elsewhere: Registry, copy: Path, operator: Caller, user: Caller
) -> None:
    filled.aliases.promote(operator, "acme", "support", [Arm(1, 1), Arm(2, 1)])
    exported(filled, copy)
    elsewhere.tenants.create(operator, "initech")
    elsewhere.bases.add(operator, make_base())
    elsewhere.versions.publish(
        operator, "initech", "first", folder_members(copy.parent.parent / "adapters" / "0"), base="tiny"
    )
    imported(elsewhere, copy)
    people = [f"user-{number}" for number in range(64)]
    arms = [[registry.resolve(user, "support", one).number for one in people] for registry in (filled, elsewhere)]
    assert arms[0] == arms[1]


def test_one_tenant_moves_alone_with_the_bases_that_it_needs(
    filled: Registry, elsewhere: Registry, copy: Path, operator: Caller
) -> None:
    exported(filled, copy, "globex")
    assert b"acme" not in b"".join(path.read_bytes() for path in copy.glob("*.json*"))
    imported(elsewhere, copy)
    assert [tenant.name for tenant in elsewhere.tenants.list(operator)] == ["globex"]
    assert [adapter.live_version for adapter in elsewhere.adapters.list(operator, "globex")] == [1]
    assert elsewhere.keys.list(operator, None) == []
    assert elsewhere.audit(operator, tenant="globex", limit=1)[0].action == "tenant.import"


def test_a_tenant_joins_those_who_are_there(filled: Registry, elsewhere: Registry, copy: Path, base: Base) -> None:
    operator = Caller.operator()
    elsewhere.tenants.create(operator, "initech")
    elsewhere.bases.add(operator, replace(base, path="/here/tiny"))
    exported(filled, copy, "acme")
    imported(elsewhere, copy)
    assert [tenant.name for tenant in elsewhere.tenants.list(operator)] == ["acme", "initech"]
    assert elsewhere.bases.find(operator, "tiny").path == "/here/tiny"


def test_a_tenant_that_is_another_by_now_is_left_as_it_is(
    filled: Registry, elsewhere: Registry, copy: Path, operator: Caller
) -> None:
    exported(filled, copy)
    elsewhere.tenants.create(operator, "acme")
    with pytest.raises(ConflictError) as caught:
        imported(elsewhere, copy)
    assert caught.value.code == "tenant_exists"
    assert [tenant.name for tenant in elsewhere.tenants.list(operator)] == ["acme"]


def test_an_adapter_that_is_called_as_a_base_here_is_refused(
    filled: Registry, elsewhere: Registry, copy: Path, operator: Caller, base: Base
) -> None:
    exported(filled, copy)
    elsewhere.bases.add(operator, replace(base, name="support", fingerprint="sha256:other"))
    with pytest.raises(ConflictError) as caught:
        imported(elsewhere, copy)
    assert caught.value.code == "name_taken_by_base"
    assert elsewhere.tenants.list(operator) == []


def test_a_key_that_is_anothers_here_is_refused(
    filled: Registry, elsewhere: Registry, copy: Path, operator: Caller
) -> None:
    filled.keys.issue(operator, "acme", name="app", scopes=frozenset({Scope.INFER}))
    exported(filled, copy, "acme")
    imported(elsewhere, copy)
    change(copy, "registry.json", lambda header: header | {"tenant": "umbrella"})
    for path in copy.glob("*.jsonl"):
        edit(copy, path.name, lambda line: line.replace('"acme"', '"umbrella"').replace("acme/", "umbrella/"))
    with pytest.raises(ConflictError) as caught:
        imported(elsewhere, copy)
    assert caught.value.code == "key_exists"


def test_bytes_that_were_collected_stay_so(filled: Registry, elsewhere: Registry, copy: Path, operator: Caller) -> None:
    assert len(list(filled.collect(operator, grace_seconds=0))) == 1
    assert exported(filled, copy).blobs == 3
    imported(elsewhere, copy)
    with pytest.raises(ConflictError) as caught:
        elsewhere.versions.restore(operator, "acme", "support", 3)
    assert caught.value.code == "blob_collected"


@pytest.fixture
def model(registry: Registry, base: Base, operator: Caller, tmp_path: Path) -> Base:
    """The version acme/model@1, as a base."""
    plain = replace(make_base_of(make_model_folder(tmp_path / "base"), "llama"), modules=base.modules)
    registry.bases.add(operator, plain)
    members = folder_members(make_model_folder(tmp_path / "model", seed=1))
    registry.versions.publish(operator, "acme", "model", members, base=plain.fingerprint, kind=Kind.FULL)
    return registry.bases.find(operator, "acme/model@1")


def test_models_come_back_with_the_adapters_that_were_trained_on_them(
    registry: Registry, elsewhere: Registry, copy: Path, operator: Caller, model: Base, tmp_path: Path
) -> None:
    folder = make_adapter_folder(tmp_path / "adapter", model)
    registry.versions.publish(operator, "acme", "support", folder_members(folder), base="acme/model@1")
    exported(registry, copy)
    imported(elsewhere, copy)
    assert everything(elsewhere, without="registry.import") == everything(registry)
    assert elsewhere.bases.find(operator, "acme/model@1") == model
    imported(elsewhere, copy)


def test_an_export_that_needs_anothers_model_says_so(
    registry: Registry, elsewhere: Registry, copy: Path, operator: Caller, model: Base, tmp_path: Path
) -> None:
    folder = make_adapter_folder(tmp_path / "adapter", model)
    registry.versions.publish(operator, "globex", "support", folder_members(folder), base="acme/model@1")
    exported(registry, copy, "globex")
    with pytest.raises(ConflictError, match="acme/model@1"):
        imported(elsewhere, copy)
    exported(registry, copy.with_name("acme"), "acme")
    imported(elsewhere, copy.with_name("acme"))
    assert imported(elsewhere, copy).versions == 1


def test_an_export_while_others_write_is_of_one_moment(
    filled: Registry, elsewhere: Registry, copy: Path, operator: Caller, tmp_path: Path, base: Base
) -> None:
    stop, failed = threading.Event(), []

    def write() -> None:
        try:
            for seed in range(100, 1000):
                folder = make_adapter_folder(tmp_path / "more" / str(seed), base, rank=1, seed=seed)
                version = filled.versions.publish(
                    operator, "acme", "support", folder_members(folder), base=base.fingerprint
                ).version
                filled.aliases.promote(operator, "acme", "support", version.number)
                if stop.is_set():
                    return
        except BaseException as error:
            failed.append(error)
            raise

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(4):
            exported(filled, copy.with_name(str(number)))
    finally:
        stop.set()
        writer.join()
    assert not failed
    imported(elsewhere, copy.with_name("3"))
    assert all(blob.state is BlobState.WHOLE for blob in elsewhere.verify(operator))
    adapter = elsewhere.adapters.get(operator, "acme", "support")
    newest = elsewhere.versions.list(operator, "acme", "support")[0]
    assert adapter.live_version in {newest.number, newest.number - 1, 2}
    assert adapter.live is not None
    history = elsewhere.aliases.history(operator, "acme", "support", limit=1000)
    assert adapter.live.arms in {move.arms for move in history}


def test_only_the_platform_exports_and_imports(filled: Registry, admin: Caller, copy: Path) -> None:
    with pytest.raises(ForbiddenError):
        list(filled.export_to(admin, copy))
    with pytest.raises(ForbiddenError):
        list(filled.import_from(admin, copy))


def test_an_export_goes_into_a_new_or_empty_folder_and_leaves_nothing_behind_if_it_fails(
    filled: Registry, copy: Path, home: Path
) -> None:
    copy.mkdir(parents=True)
    exported(filled, copy)
    with pytest.raises(InvalidError) as caught:
        exported(filled, copy)
    assert caught.value.code == "folder_not_empty"
    with pytest.raises(NotFoundError):
        exported(filled, copy.with_name("other"), "nobody")
    weights = next((home / "store" / "sha256").glob("*/adapter_model.safetensors"))
    weights.chmod(0o600)
    weights.write_bytes(b"spoilt")
    with pytest.raises(StorageError) as damaged:
        exported(filled, copy.with_name("other"))
    assert damaged.value.code == "blob_damaged"
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_an_export_goes_where_a_link_leads(filled: Registry, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        link = tmp_path / f"to-{name}"
        link.symlink_to(tmp_path / name)
        exported(filled, link)
        assert (link.is_symlink(), (tmp_path / name / "registry.json").is_file()) == (True, True)
        with pytest.raises(InvalidError) as caught:
            exported(filled, link)
        assert caught.value.code == "folder_not_empty"


def test_an_export_through_links_that_go_round_is_refused(filled: Registry, tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to(tmp_path / "there")
    (tmp_path / "there").symlink_to(tmp_path / "here")
    with pytest.raises((InvalidError, StorageError)):
        exported(filled, tmp_path / "here")


def test_an_export_whose_folder_was_taken_meanwhile_is_refused(filled: Registry, copy: Path) -> None:
    steps = filled.export_to(Caller.operator(), copy)
    next(steps)
    copy.write_text("a file")
    with pytest.raises(InvalidError) as caught:
        list(steps)
    assert caught.value.code == "folder_not_empty"


def test_an_export_into_the_registrys_own_home_is_refused(filled: Registry, home: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(home)
    for folder in (home, home / "backups" / "monday", tmp_path / "link" / "monday"):
        with pytest.raises(InvalidError) as caught:
            exported(filled, folder)
        assert caught.value.code == "folder_in_home"
    assert not (home / "backups").exists()


def test_an_engine_here_probes_what_was_ready_elsewhere(
    filled: Registry, elsewhere: Registry, copy: Path, operator: Caller
) -> None:
    ready = ProbeVerdict(is_accepted=True)
    filled.versions.record_probe(operator, filled.versions.get(operator, "acme", "support", 1).id, ready)
    exported(filled, copy)
    imported(elsewhere, copy)
    version = elsewhere.versions.get(operator, "acme", "support", 1)
    assert version.state == "unprobed"
    assert imported(elsewhere, copy) == Transfer(0, 0, 0, 0, 0, 0)
    elsewhere.versions.record_probe(operator, version.id, ready)
    assert imported(elsewhere, copy) == Transfer(0, 0, 0, 0, 0, 0)
    assert elsewhere.versions.get(operator, "acme", "support", 1).state == "ready"


def test_an_export_is_for_its_owners_eyes_and_holds_no_secret(filled: Registry, copy: Path, operator: Caller) -> None:
    issued = filled.keys.issue(operator, "acme", name="app", scopes=frozenset({Scope.INFER}))
    exported(filled, copy)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (copy, *copy.rglob("*")))
    text = (copy / "keys.jsonl").read_text()
    assert issued.key.id in text
    assert issued.secret not in text


def test_a_row_that_was_spoilt_past_the_program_is_one_clear_error(
    filled: Registry, copy: Path, execute: Execute
) -> None:
    execute("UPDATE aliases SET revision = -1")
    with pytest.raises(StorageError, match="AliasRecord, 'revision'") as caught:
        exported(filled, copy)
    assert caught.value.code == "database_damaged"
    assert not copy.exists()
