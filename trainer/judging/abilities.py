"""The regression set: what a base can do in general, and should still be able to do after it was trained.

Written for this project, no benchmark's: eight topics, in `abilities/*.jsonl`. Most items have choices, of which the
likeliest counts as the answer: "Question: … Answer:" and then the choice, without a chat template, since that asks what
the weights know rather than in which form they were taught to say it. The default base gets 79 of these 104 right so,
and 73 in its chat template, where arithmetic falls to chance. The topic `instructions` is put as chat and answered
freely.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from trainer.errors import JudgeError


@dataclass(frozen=True, slots=True)
class Item:
    """One question: with choices, the first of which is right; or with a pattern that is looked for in what is said."""

    topic: str
    question: str
    choices: tuple[str, ...] = ()
    pattern: str = ""

    @property
    def chance(self) -> float:
        """How often a guess is right."""
        return 1 / len(self.choices) if self.choices else 0.0

    def accepts(self, answer: str) -> bool:
        """Whether a free answer is right."""
        return re.search(self.pattern, answer, re.IGNORECASE) is not None


@dataclass(frozen=True)
class Abilities:
    """A set of items, in order."""

    items: tuple[Item, ...]

    @cached_property
    def digest(self) -> str:
        """Of all that the items say."""
        said = [[item.topic, item.question, item.choices, item.pattern] for item in self.items]
        return f"sha256:{hashlib.sha256(json.dumps(said).encode()).hexdigest()}"


def shipped_abilities() -> Abilities:
    """The set that ships."""
    folder = files("trainer.judging") / "abilities"
    named = sorted((entry.name, entry) for entry in folder.iterdir() if entry.name.endswith(".jsonl"))
    return Abilities(tuple(item for name, entry in named for item in _items(name, entry.read_text("utf-8"))))


def read_abilities(path: Path) -> Abilities:
    """A set of the user's own: one .jsonl file, whose name is the topic, or a folder of them.

    Raises:
        JudgeError: it can't be read, or the first line that is no item, by number.
    """
    found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    try:
        items = tuple(item for file in found for item in _items(file.name, file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise JudgeError(f"{path}: the regression set can't be read as UTF-8 text.") from error
    if not items:
        raise JudgeError(f"{path}: there is no item of a regression set in it.")
    return Abilities(items)


def _items(name: str, text: str) -> list[Item]:
    topic = name.removesuffix(".jsonl")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [_item(topic, line, f"{name} line {number}") for number, line in lines]


def _item(topic: str, line: str, where: str) -> Item:
    shape = '{"question", "answer", "wrong": […]} or {"question", "pattern"}'
    try:
        match json.loads(line):
            case {"question": str(question), "answer": str(answer), "wrong": [*wrong], **rest} if wrong and not rest:
                return Item(topic, question, choices=(answer, *map(str, wrong)))
            case {"question": str(question), "pattern": str(pattern), **rest} if not rest:
                re.compile(pattern)
                return Item(topic, question, pattern=pattern)
            case _:
                raise JudgeError(f"{where}: an item of a regression set is {shape}.")
    except (ValueError, re.error) as error:
        raise JudgeError(f"{where}: an item of a regression set is {shape}: {error}.") from error
