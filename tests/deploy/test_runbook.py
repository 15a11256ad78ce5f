"""Who is woken finds what to do, and what it says to run exists."""

import re

import pytest
import typer

from adapters import RegistrySettings
from lorikeet import build
from server.settings import ServerSettings
from tests.deploy.promql import DEPLOY, alerts

PAGE = (DEPLOY / "RUNBOOK.md").read_text()
QUOTED = {" ".join(words.split()) for words in re.findall(r"`(lorikeet [^`]+)`", PAGE)}
COMMANDS = sorted(QUOTED | set(re.findall(r"^(lorikeet .+)$", PAGE, re.MULTILINE)))


def anchors() -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_every_alert_has_its_place_in_the_runbook() -> None:
    for name, alert in alerts().items():
        page, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert page == "deploy/RUNBOOK.md"
        assert anchor == name.lower()
        assert anchor in anchors()


def test_every_symptom_says_how_to_see_it_why_it_is_and_what_to_do() -> None:
    for name in alerts():
        section = PAGE.partition(f"## {name}\n")[2].partition("\n## ")[0]
        assert [part for part in ("**See.**", "**Why.**", "**Do.**") if part not in section] == [], name


def test_links_inside_lead_somewhere() -> None:
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists(command: str) -> None:
    _, *words = command.split()
    app = build(*[word for word in words if not word.startswith("-")][:2])
    group = typer.main.get_command(app)
    while words and hasattr(group, "commands") and words[0] in group.commands:
        group = group.commands[words.pop(0)]
    is_verb_left = bool(getattr(group, "commands", None)) and bool(words) and not words[0].startswith("-")
    assert not is_verb_left, command
    options = {option for parameter in group.params for option in parameter.opts}
    assert [word for word in words if word.startswith("--") and word not in options] == []


def test_every_setting_that_is_named_exists() -> None:
    names = {f"LORIKEET_{name.upper()}" for kind in (ServerSettings, RegistrySettings) for name in kind.model_fields}
    assert set(re.findall(r"LORIKEET_[A-Z_]+[A-Z]", PAGE)) <= names
