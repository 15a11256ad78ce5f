"""What may stand after `--base`, and what is said of what the registry does not know."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from adapters import InvalidError, NotFoundError, Registry, open_registry
from server.named_base import known_base
from tests.builders import make_base
from tests.server.world import OPERATOR

HUB_ID = "Owner/Model-1B"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with open_registry(tmp_path / "home") as registry:
        yield registry


def test_a_base_from_the_hub_is_served_by_its_id(registry: Registry) -> None:
    base = registry.bases.add(OPERATOR, make_base(HUB_ID))
    with registry.hold_base(OPERATOR, known_base(registry, HUB_ID)) as held:
        assert (held.name, held.fingerprint) == (HUB_ID, base.fingerprint)


def test_a_folder_is_found_however_it_is_written(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    registry.bases.add(OPERATOR, replace(make_base("found"), path=str(folder)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for written in (str(folder), f"{folder}/", "checkpoint", "./checkpoint", "link", "~/checkpoint"):
        assert registry.bases.find(OPERATOR, known_base(registry, written)).name == "found"


def test_a_folder_that_is_not_entered_is_answered_with_the_command_that_enters_it(
    registry: Registry, tmp_path: Path
) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    with pytest.raises(NotFoundError) as refusal:
        known_base(registry, str(folder))
    assert refusal.value.code == "base_not_found"
    assert f"`lorikeet base '{folder}'`" in refusal.value.message


def test_a_hub_id_that_is_not_entered_is_answered_with_the_command_that_enters_it(registry: Registry) -> None:
    with pytest.raises(NotFoundError) as refusal:
        known_base(registry, HUB_ID)
    assert f"`lorikeet base {HUB_ID}`" in refusal.value.message
    assert f"{HUB_ID}@1" in refusal.value.message


@pytest.mark.parametrize("reference", ["acme/model@7", "nothing", "/no/such/folder"])
def test_what_is_neither_is_told_what_there_is(registry: Registry, reference: str) -> None:
    registry.bases.add(OPERATOR, make_base("tiny"))
    with pytest.raises(NotFoundError, match="It has: tiny"):
        known_base(registry, reference)


def test_a_versions_name_is_never_a_hub_id(registry: Registry) -> None:
    with pytest.raises(InvalidError) as refusal:
        registry.bases.add(OPERATOR, make_base("acme/model@2"))
    assert refusal.value.code == "invalid_base_name"
