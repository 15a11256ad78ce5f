"""Rows as records: what is written to held_out.jsonl, and what fingerprints are taken over. Reading gives them back."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from trainer.dataset.values import Completion, Conversation, Message, PlainText, Preference, Row


def as_record(row: Row) -> dict[str, Any]:
    """The row in a format of the product's own; its line is not part of it."""
    match row:
        case Conversation(learns_last_only=True):
            turns = _turns(row.messages)
            return {"prompt": turns[:-1], "completion": turns[-1:]} | _tools(row)
        case Conversation():
            return {"messages": _turns(row.messages)} | _tools(row)
        case Completion():
            return {"prompt": row.prompt, "completion": row.completion}
        case PlainText():
            return {"text": row.text}
        case Preference():
            sides = {"chosen": row.chosen, "rejected": row.rejected}
            return {"prompt": _turns(row.prompt)} | {
                key: [{"role": "assistant", "content": answer}] for key, answer in sides.items()
            }


def as_line(row: Row) -> str:
    """The record as a line of JSONL, without the line's end."""
    return json.dumps(as_record(row), ensure_ascii=False)


def fingerprint(rows: Iterable[Row]) -> str:
    """Of what rows say and in which order, whatever file they were read from."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(as_line(row).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def gist(row: Row) -> bytes:
    """A digest that rows share if they say the same, but for case and white space."""
    return hashlib.sha256(json.dumps(_plain(as_record(row))).encode()).digest()


def _plain(value: Any) -> Any:  # noqa: ANN401  — JSON
    if isinstance(value, str):
        return " ".join(value.casefold().split())
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _turns(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    return [message.as_turn() for message in messages]


def _tools(row: Conversation) -> dict[str, Any]:
    return {"tools": json.loads(row.tools)} if row.tools is not None else {}
