"""Whoever carried an export is trusted with nothing: what no registry would hold is refused whole."""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import (
    Arm,
    Caller,
    ConflictError,
    InvalidError,
    RefusedError,
    Registry,
    RegistryError,
    Scope,
    UsageRow,
    folder_members,
    open_registry,
)
from adapters.transfer.check import check
from adapters.transfer.files import read_export
from tests.adapters.listings import everything
from tests.adapters.transferring import blob_of, change, edit, exported, imported
from tests.builders import make_adapter_folder, make_base


def refused(registry: Registry, folder: Path) -> InvalidError:
    """The import is refused, and nothing of it is there."""
    with pytest.raises(InvalidError) as caught:
        imported(registry, folder)
    assert registry.tenants.list(Caller.operator()) == []
    assert str(folder) not in caught.value.message
    return caught.value


@pytest.fixture(scope="module")
def whole_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, for all who tamper with a copy."""
    folder, base, operator = tmp_path_factory.mktemp("export"), make_base(), Caller.operator()
    with open_registry(folder / "home") as registry:
        registry.bases.add(operator, base)
        for tenant in ("acme", "globex"):
            registry.tenants.create(operator, tenant)
            registry.keys.issue(operator, tenant, name="app", scopes=frozenset({Scope.INFER}))
        for seed in range(2):
            members = folder_members(make_adapter_folder(folder / str(seed), base, seed=seed))
            registry.versions.publish(operator, "acme", "support", members, base="tiny")
            registry.aliases.promote(operator, "acme", "support", seed + 1)
        registry.aliases.promote(operator, "acme", "support", [Arm(1, 1), Arm(2, 3)])
        registry.grants.give(operator, "acme", "support", "globex")
        used = UsageRow(date(2026, 1, 2), "acme", "support", 1, "key-1", requests=3, prompt_tokens=99)
        registry.usage.add(operator, [used])
        exported(registry, folder / "whole")
    return folder / "whole"


@pytest.fixture
def tampered(whole_export: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole_export, tmp_path / "export")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One for all: whatever is refused leaves nothing behind."""
    with open_registry(tmp_path_factory.mktemp("target")) as opened:
        yield opened


def test_an_unknown_format_is_named(target: Registry, tampered: Path) -> None:
    change(tampered, "registry.json", lambda header: {"format": 7, "new": header})
    error = refused(target, tampered)
    assert error.code == "export_format_unknown"
    assert "format 7" in error.message


@pytest.mark.parametrize("name", ["registry.json", "promotions.jsonl", "audit.jsonl", "usage.jsonl", "blobs"])
def test_an_export_that_lacks_a_file_is_refused(target: Registry, tampered: Path, name: str) -> None:
    path = tampered / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert refused(target, tampered).code == "export_incomplete"


@pytest.mark.parametrize(
    "name", ["tenants", "keys", "bases", "adapters", "versions", "promotions", "aliases", "grants", "audit", "usage"]
)
def test_a_line_that_is_cut_off_or_missing_or_changed_is_refused_by_its_file(
    target: Registry, tampered: Path, name: str
) -> None:
    path = tampered / f"{name}.jsonl"
    whole = path.read_bytes()
    last = whole.count(b"\n")
    for spoilt, said in (
        (whole[:-5], f"{name}.jsonl, line {last}: the line is cut off."),
        (whole[: whole[:-1].rfind(b"\n") + 1], f"{name}.jsonl is not what was exported"),
        (whole.replace(b"acme", b"acne").replace(b"tiny", b"tinz"), f"{name}.jsonl"),
        (b"\xff\n" + whole, f"{name}.jsonl, line 1: it is not UTF-8"),
        (b"[]\n" + whole, f"{name}.jsonl, line 1: "),
    ):
        path.write_bytes(spoilt)
        error = refused(target, tampered)
        assert error.code == "export_damaged"
        assert said in error.message


@pytest.mark.parametrize(
    ("name", "line", "fields"),
    [
        ("tenants", 0, {"name": "Acme!"}),
        ("tenants", 0, {"limits": {"max_adapters": "many"}}),
        ("tenants", 0, {"limits": {"zzz": 1}}),
        ("tenants", 0, {"new": 1}),
        ("tenants", 1, {"name": "acme"}),
        ("keys", 0, {"scopes": ["platform"]}),
        ("keys", 0, {"tenant": None}),
        ("keys", 0, {"tenant": "initech"}),
        ("keys", 0, {"created_at": "2026-01-01T00:00:00"}),
        ("keys", 0, {"created_at": "9999-12-31T23:59:59-01:00"}),
        ("keys", 0, {"name": "nul \0"}),
        ("keys", 0, {"secret_sha256": "0" * 63}),
        ("keys", 0, {"name": "\x1b[2J"}),
        ("bases", 0, {"path": "/models/\x1b[2J"}),
        ("bases", 0, {"name": "\x9b2J"}),
        ("bases", 0, {"fingerprint": "sha256:another"}),
        ("bases", 0, {"version": "acme/support@1"}),
        ("bases", 0, {"modules": {"model.q_proj": [0, -1]}}),
        ("adapters", 0, {"name": "base"}),
        ("adapters", 0, {"tenant": "initech"}),
        ("versions", 0, {"number": 2}),
        ("versions", 0, {"number": True}),
        ("versions", 0, {"number": 2**31}),
        ("versions", 0, {"state": "excellent"}),
        ("versions", 0, {"has_files": False}),
        ("versions", 0, {"state": "retired"}),
        ("versions", 0, {"parents": ["acme/support@9"]}),
        ("versions", 0, {"parents": ["globex/support@1"]}),
        ("versions", 0, {"parents": ["acme/support@1"]}),
        ("versions", 0, {"warnings": ["\x1b[2J"]}),
        ("versions", 0, {"created_by": "\x1b]0;root\x07"}),
        ("versions", 0, {"tags": ["b", "a"]}),
        ("versions", 0, {"tags": ["Not a tag"]}),
        ("versions", 0, {"note": "\x1b[2J"}),
        ("versions", 0, {"created_by": "\ud800"}),
        ("versions", 0, {"manifest": {}}),
        ("promotions", 0, {"version": 9}),
        ("promotions", 0, {"replaced": 1}),
        ("promotions", 1, {"replaced": 3}),
        ("promotions", 2, {"split": [[1, 1], [1, 3]]}),
        ("promotions", 2, {"split": [[1, 4], [2, 3]]}),
        ("promotions", 2, {"split": []}),
        ("promotions", 2, {"alias": "7"}),
        ("aliases", 0, {"promotion": 9}),
        ("aliases", 0, {"revision": 0}),
        ("grants", 0, {"grantee": "acme"}),
        ("grants", 0, {"adapter": "sales"}),
        ("audit", 0, {"tenant": "initech"}),
        ("usage", 0, {"tenant": "initech"}),
        ("usage", 0, {"day": 20260101}),
        ("usage", 0, {"day": "2026-W01-1"}),
        ("usage", 0, {"key_id": "\x1b[2J"}),
        ("usage", 0, {"prompt_tokens": 2**53 - 1}),
        ("audit", 0, {"subject": "\x1b[2J"}),
        ("usage", 0, {"requests": -1}),
        ("audit", 0, {"detail": {"x": [1e999]}}),
    ],
)
def test_records_that_no_registry_would_hold_are_refused(
    target: Registry, tampered: Path, name: str, line: int, fields: dict[str, Any]
) -> None:
    change(tampered, f"{name}.jsonl", lambda record: record | fields, line)
    assert refused(target, tampered).code in {"export_damaged", "export_incomplete"}


def test_versions_that_are_each_others_parents_are_refused_by_their_line(target: Registry, tampered: Path) -> None:
    change(tampered, "versions.jsonl", lambda record: record | {"parents": ["acme/support@2"]}, 0)
    change(tampered, "versions.jsonl", lambda record: record | {"parents": ["acme/support@1"]}, 1)
    assert "among its own ancestors" in refused(target, tampered).message


def test_a_line_of_the_usage_that_is_there_twice_is_refused_by_its_line(target: Registry, tampered: Path) -> None:
    edit(tampered, "usage.jsonl", lambda text: text + text)
    assert refused(target, tampered).message == "usage.jsonl, line 2: it is there twice."


def test_what_is_wrong_with_a_field_is_said_in_our_words(target: Registry, tampered: Path) -> None:
    change(tampered, "usage.jsonl", lambda record: record | {"day": "20260101"})
    assert refused(target, tampered).message == "usage.jsonl, line 1: 'day': write a day as YYYY-MM-DD."


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**31 - 2, 2**63)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        ["acme", "\ud800", "\0", "2026-01-01T00:00:00+00:00", "sha256:" + "0" * 64, "x" * 400, "support"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("empty")
    open_registry(home).close()
    return home


@settings(max_examples=60)
@given(spoil=st.data())
def test_whatever_a_record_says_is_imported_whole_or_refused(
    whole_export: Path, empty_home: Path, spoil: st.DataObject
) -> None:
    name = spoil.draw(st.sampled_from(["registry.json", *(path.name for path in sorted(whole_export.glob("*.jsonl")))]))
    with TemporaryDirectory() as place:
        copy = shutil.copytree(whole_export, Path(place) / "copy")
        home = shutil.copytree(empty_home, Path(place) / "home")
        records = (copy / name).read_text().splitlines() if name.endswith("l") else [(copy / name).read_text()]
        line = spoil.draw(st.integers(0, len(records) - 1))
        fields = sorted(json.loads(records[line]))
        changes = spoil.draw(st.dictionaries(st.sampled_from([*fields, "other"]), JSON, min_size=1, max_size=2))
        change(copy, name, lambda record: record | changes, line)
        with open_registry(home) as registry:
            try:
                imported(registry, copy)
            except (InvalidError, ConflictError, RefusedError):
                assert registry.tenants.list(Caller.operator()) == []
                assert registry.bases.list(Caller.operator()) == []
            else:
                everything(registry)
                exported(registry, Path(place) / "again")


@settings(max_examples=60)
@given(spoil=st.data())
def test_whatever_bytes_a_file_holds_are_refused_or_as_they_were(whole_export: Path, spoil: st.DataObject) -> None:
    name = spoil.draw(st.sampled_from(["registry.json", *(path.name for path in sorted(whole_export.glob("*.jsonl")))]))
    with TemporaryDirectory() as place:
        copy = shutil.copytree(whole_export, Path(place) / "copy")
        content = bytearray((copy / name).read_bytes())
        at = spoil.draw(st.integers(0, len(content) - 1))
        content[at : at + spoil.draw(st.integers(0, 9))] = spoil.draw(st.binary(min_size=1, max_size=9))
        is_same = bytes(content) == (copy / name).read_bytes()
        (copy / name).write_bytes(content)
        with suppress(RegistryError):
            check(read_export(copy))
            assert is_same or name == "registry.json"  # where a date or a space may be another


def test_a_tenants_export_brings_nothing_of_the_platforms(target: Registry, tampered: Path) -> None:
    change(tampered, "registry.json", lambda header: header | {"tenant": "acme"})
    assert "tenants.jsonl, line 2" in refused(target, tampered).message
    for name in ("tenants.jsonl", "keys.jsonl"):
        edit(tampered, name, lambda text: text.splitlines()[0] + "\n")
    assert "audit.jsonl, line" in refused(target, tampered).message
    change(tampered, "keys.jsonl", lambda key: key | {"tenant": None, "scopes": ["platform"]})
    assert "keys.jsonl, line 1" in refused(target, tampered).message


def test_files_that_the_gate_refuses_are_refused_though_all_sums_are_right(
    target: Registry, tampered: Path, operator: Caller
) -> None:
    (blob_of(tampered) / "adapter_model.safetensors").write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(RefusedError, match="acme/support@1: ") as caught:
        imported(target, tampered)
    assert caught.value.code == "unsupported_format"
    assert target.tenants.list(operator) == []


def test_other_files_than_the_digest_says_are_refused(target: Registry, tampered: Path, operator: Caller) -> None:
    first, second = blob_of(tampered, 0), blob_of(tampered, 1)
    shutil.rmtree(first)
    shutil.copytree(second, first)
    assert "not those of" in refused(target, tampered).message
    assert target.tenants.list(operator) == []


def test_a_file_more_than_a_blob_has_is_refused(target: Registry, tampered: Path) -> None:
    (blob_of(tampered) / "run.py").write_text("print()")
    with pytest.raises(RefusedError) as caught:
        imported(target, tampered)
    assert caught.value.code == "unexpected_file"


def test_what_follows_from_the_bytes_is_derived_anew(tampered: Path, tmp_path: Path, operator: Caller) -> None:
    change(
        tampered,
        "versions.jsonl",
        lambda record: record | {"manifest": record["manifest"] | {"rank": 1, "size_bytes": 1, "later": "kept"}},
    )
    with open_registry(tmp_path / "home") as registry:
        imported(registry, tampered)
        manifest = registry.versions.get(operator, "acme", "support", 1).manifest
    assert (manifest.rank, manifest.size_bytes > 1, manifest.extra) == (8, True, {"later": "kept"})
