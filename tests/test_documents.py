"""The documents are true."""

import re
import tomllib

import pytest

from tests.documents import BLOCKS, ROOT, block_pattern

DOCUMENTS = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "DECISIONS.md",
    "CHANGELOG.md",
    "deploy/README.md",
    "deploy/TRAINING.md",
)


@pytest.mark.parametrize(("document", "name"), BLOCKS)
def test_what_follows_from_the_code_stands_in_the_document(document: str, name: str) -> None:
    (written,) = block_pattern(name).findall((ROOT / document).read_text())

    assert written == BLOCKS[document, name](), "run: python -m tests.documents"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_names_is_there(document: str) -> None:
    text = (ROOT / document).read_text()
    named = set(re.findall(r"`((?:adapters|trainer|server|tests|deploy)/[\w./-]+)`", text))
    linked = {target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target}

    missing = {name for name in named if not (ROOT / name).exists()}
    missing |= {target for target in linked if not ((ROOT / document).parent / target).exists()}

    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_verb_that_a_document_names_is_there(document: str) -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    named = set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", (ROOT / document).read_text(), re.MULTILINE))

    assert {one or other for one, other in named} <= verbs


def test_every_setting_has_its_meaning_in_the_table() -> None:
    rows = BLOCKS["deploy/README.md", "settings"]().splitlines()[2:]

    assert [row for row in rows if row.endswith("|  |")] == []


def test_the_two_accelerators_exclude_each_other() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    assert "torch==2.13.0+cpu" in extras["cpu"]
    assert "torch!=2.13.0+cpu" in extras["gpu"]
