"""What data say: rows, each of one of four shapes, whatever file or format they came in. Knows no tokens."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.dataset.findings import Finding, Place


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    tool_calls: str | None = None
    """The tools that the assistant calls, as JSON text: a list as chat templates take it."""
    name: str | None = None
    tool_call_id: str | None = None
    """Of a tool's answer: whose, and to which call."""

    def as_turn(self) -> dict[str, Any]:
        """As a chat template takes it."""
        turn: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls is not None:
            turn["tool_calls"] = json.loads(self.tool_calls)
        if self.name is not None:
            turn["name"] = self.name
        if self.tool_call_id is not None:
            turn["tool_call_id"] = self.tool_call_id
        return turn


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat; what the assistant says is learned. `line` is where a row stands in its file."""

    line: int
    messages: tuple[Message, ...]
    learns_last_only: bool = False
    """Only the last answer: the rest was given as a prompt."""
    tools: str | None = None
    """The tools that the assistant may call, as JSON text: a list as chat templates take it."""


@dataclass(frozen=True, slots=True)
class Completion:
    """Raw text and how it goes on, with no chat template: only the completion is learned, and the end after it."""

    line: int
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class PlainText:
    """Text of which everything is learned, and the end after it."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt, the answer that is wanted and one that is not; for DPO."""

    line: int
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


Row = Conversation | Completion | PlainText | Preference


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows of one shape, and the digest of what they say, in whatever format it was said."""

    name: str
    """The file's, for messages."""
    rows: tuple[Row, ...]
    fingerprint: str
    unit: str = "line"
    """What `row.line` counts; "row" in a file that has no lines."""

    def place(self, row: Row, detail: str = "") -> Place:
        """Where a row stands."""
        return Place(file=self.name, unit=self.unit, line=row.line, detail=detail)


@dataclass(frozen=True, slots=True)
class Split:
    """What is trained on, and what is held out and never trained on. Each side has a fingerprint of its own."""

    train: Dataset
    held_out: Dataset
    """Perhaps without rows."""
    source_fingerprint: str = ""
    """Of the bytes that were read, or of the rows where there are none."""
    findings: tuple[Finding, ...] = ()
    """What reading and splitting have to say: rows left out, keys not learned from, nothing held out."""
    answer_schema: Mapping[str, Any] | None = None
    """The JSON Schema that every answer satisfies, if the job names one."""
