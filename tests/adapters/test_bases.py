"""Bases are known by what they are, not by how they were saved."""

import dataclasses
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from adapters import (
    Base,
    Caller,
    ConflictError,
    InvalidError,
    NotFoundError,
    Registry,
    RegistryError,
    fingerprint_base,
)
from adapters.bases import claim_adapter_name, claim_base_name
from adapters.database import Database
from tests.adapters.conftest import Execute, Publish
from tests.builders import make_base, make_base_folder


def test_a_base_is_found_by_name_fingerprint_and_path(registry: Registry, base: Base) -> None:
    for reference in (base.name, base.fingerprint, base.path):
        assert registry.bases.find(Caller.operator(), reference) == base


@pytest.mark.parametrize("reference", ["nothing", "", "\0", "\ud800", "sha256:0", "/bases/other", "x@1", "a..b/c@1"])
def test_an_unknown_base_is_not_found_and_the_known_ones_are_named(registry: Registry, reference: str) -> None:
    with pytest.raises(NotFoundError, match="It has: tiny") as caught:
        registry.bases.find(Caller.operator(), reference)
    assert caught.value.code == "base_not_found"


def test_adding_a_base_again_renews_what_is_known_of_it(registry: Registry, base: Base, operator: Caller) -> None:
    moved = dataclasses.replace(base, path="/elsewhere", name="renamed")
    registry.bases.add(operator, moved)
    assert registry.bases.list(operator) == [moved]


def test_a_name_means_the_base_that_was_entered_last(registry: Registry, base: Base, operator: Caller) -> None:
    newer = dataclasses.replace(make_base("other"), name=base.name, created_at=base.created_at + timedelta(days=1))
    registry.bases.add(operator, newer)
    assert registry.bases.find(Caller.operator(), base.name) == newer
    assert registry.bases.find(Caller.operator(), base.fingerprint) == base


@pytest.mark.parametrize("name", ["support", "globex/support", "support@1", "support@live"])
def test_a_base_cannot_take_the_name_of_any_tenants_adapter(
    registry: Registry, publish: Publish, operator: Caller, base: Base, name: str
) -> None:
    publish("support", tenant="globex")
    for named in (make_base(name), dataclasses.replace(base, name=name)):
        with pytest.raises(ConflictError) as caught:
            registry.bases.add(operator, named)
        assert caught.value.code == "name_taken_by_adapter"
        assert "globex" not in caught.value.message.replace(name, "")
    assert registry.bases.list(operator) == [base]


def test_a_base_and_an_adapter_do_not_begin_to_be_called_the_same_at_once(
    registry: Registry, home: Path, database_url: str | None
) -> None:
    url = database_url or f"sqlite:///{home / 'registry.db'}"
    with registry._database.write() as first, Database(url, wait_seconds=0.2) as other:
        claim_base_name(first, "support")
        with pytest.raises(RegistryError), other.write() as second:
            claim_adapter_name(second, "founded-meanwhile", "support")


@pytest.mark.parametrize("name", ["", "n" * 201, "a\0b", "a\ud800b", "two\nlines", "acme/support@1"])
def test_a_base_has_a_name_that_means_it_and_can_be_kept(
    registry: Registry, operator: Caller, base: Base, name: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        registry.bases.add(operator, dataclasses.replace(base, name=name))
    assert caught.value.code == "invalid_base_name"


@pytest.mark.parametrize("path", ["p" * 4097, "a\0b", "a\ud800b"])
def test_a_base_has_a_path_that_can_be_kept(registry: Registry, operator: Caller, base: Base, path: str) -> None:
    with pytest.raises(InvalidError) as caught:
        registry.bases.add(operator, dataclasses.replace(base, path=path))
    assert caught.value.code == "invalid_base_path"


def test_a_name_and_a_path_may_be_as_long_as_there_is_room(registry: Registry, operator: Caller, base: Base) -> None:
    longest = dataclasses.replace(base, name="n" * 200, path="/" + "p" * 4095)
    registry.bases.add(operator, longest)
    assert registry.bases.find(operator, longest.name) == longest


def test_a_repeated_call_that_says_something_else_of_the_base_is_another_call(
    registry: Registry, operator: Caller, base: Base
) -> None:
    once = dataclasses.replace(operator, idempotency_key="key-1")
    registry.bases.add(once, base)
    registry.bases.add(once, dataclasses.replace(base, created_at=base.created_at + timedelta(days=1)))
    for other in ({"path": "/elsewhere"}, {"config": {"vocab_size": 9}}, {"name": "other"}):
        with pytest.raises(ConflictError) as caught:
            registry.bases.add(once, dataclasses.replace(base, **other))
        assert caught.value.code == "idempotency_key_reuse"
    assert registry.bases.list(operator) == [base]


def test_of_a_base_that_was_added_little_is_remembered(
    registry: Registry, operator: Caller, base: Base, execute: Execute
) -> None:
    large = dataclasses.replace(base, tensors={f"model.layers.{n}.weight": (8, 8) for n in range(1000)})
    registry.bases.add(dataclasses.replace(operator, idempotency_key="key-1"), large)
    ((result,),) = execute("SELECT result FROM idempotency")
    assert len(str(result)) < 200


# --- fingerprints -----------------------------------------------------------------------------------------------------


def test_a_fingerprint_counts_what_it_has_read(tmp_path: Path) -> None:
    found = fingerprint_base(make_base_folder(tmp_path / "base"))
    assert (found.parameter_count, found.size_bytes) == (32, 64)
    assert found.fingerprint.startswith("sha256:")
    assert found.chat_template_digest is not None


def change_tokenizer(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    change(tokenizer)
    path.write_text(json.dumps(tokenizer, indent=3))


def move_template(folder: Path, *, is_listed: bool) -> None:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    stored = [{"name": "tool", "template": "x"}, {"name": "default", "template": template}] if is_listed else template
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": stored}))


HARMLESS: dict[str, Callable[[Path], object]] = {
    "a newer tokenizer format": lambda folder: change_tokenizer(
        folder, lambda t: t.update(version="2.0", padding=None)
    ),
    "merges as text": lambda folder: change_tokenizer(folder, lambda t: t["model"].update(merges=["a b"])),  # type: ignore[attr-defined]
    "a note of the library's version": lambda folder: (folder / "config.json").write_text(
        '{"transformers_version": "9"}'
    ),
    "the template in the config": lambda folder: move_template(folder, is_listed=False),
    "the template among several": lambda folder: move_template(folder, is_listed=True),
}
TELLING: dict[str, Callable[[Path], object]] = {
    "another vocabulary": lambda folder: change_tokenizer(folder, lambda t: t["model"]["vocab"].update(c=2)),  # type: ignore[index]
    "other merges": lambda folder: change_tokenizer(folder, lambda t: t["model"].update(merges=[])),  # type: ignore[attr-defined]
    "another added token": lambda folder: change_tokenizer(folder, lambda t: t.update(added_tokens=[])),
    "another template": lambda folder: (folder / "chat_template.jinja").write_text("{{ other }}"),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_a_library_version_changes_does_not_change_the_fingerprint(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    folder = make_base_folder(tmp_path / "base")
    before = fingerprint_base(folder)
    change(folder)
    assert fingerprint_base(folder) == before


@pytest.mark.parametrize("change", TELLING.values(), ids=TELLING.keys())
def test_what_changes_the_answers_changes_the_fingerprint(tmp_path: Path, change: Callable[[Path], object]) -> None:
    folder = make_base_folder(tmp_path / "base")
    before = fingerprint_base(folder)
    change(folder)
    assert fingerprint_base(folder).fingerprint != before.fingerprint


def test_a_checkpoint_in_shards_is_the_same_base(tmp_path: Path) -> None:
    whole, sharded = make_base_folder(tmp_path / "1", shards=1), make_base_folder(tmp_path / "2", shards=2)
    assert fingerprint_base(whole) == fingerprint_base(sharded)


def test_other_weights_are_another_base(tmp_path: Path) -> None:
    one, other = make_base_folder(tmp_path / "1", seed=1), make_base_folder(tmp_path / "2", seed=2)
    assert fingerprint_base(one).fingerprint != fingerprint_base(other).fingerprint


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "model-0.safetensors").unlink(),
        lambda folder: (folder / "model-0.safetensors").write_bytes(b"123"),
        lambda folder: (folder / "copy.safetensors").write_bytes((folder / "model-0.safetensors").read_bytes()),
        lambda folder: (folder / "tokenizer.json").write_text("[]"),
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff"),
    ],
    ids=["no weights", "broken weights", "a tensor twice", "tokenizer is a list", "broken tokenizer", "not UTF-8"],
)
def test_a_checkpoint_that_cannot_be_read_is_refused(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    folder = make_base_folder(tmp_path / "base")
    spoil(folder)
    with pytest.raises(InvalidError) as caught:
        fingerprint_base(folder)
    assert caught.value.code == "base_unreadable"


def test_a_tenant_cannot_ask_where_a_base_lies(registry: Registry, operator: Caller, admin: Caller, base: Base) -> None:
    assert registry.bases.find(operator, base.path) == base
    with pytest.raises(NotFoundError):
        registry.bases.find(admin, base.path)
