"""Chat data, read strictly: every line is learned from as it stands, or named as broken. Knows no tokens."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import DatasetError

ROLES = frozenset({"system", "user", "assistant"})
SHAPE = '{"messages": [{"role": …, "content": …}, …]}'


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """One example; ends with the assistant. `line` is where it stands in its file."""

    line: int
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class ChatDataset:
    """A file's conversations, and the digest of its bytes."""

    name: str
    conversations: tuple[Conversation, ...]
    fingerprint: str


def read_chat(path: Path) -> ChatDataset:
    """Read a chat JSONL file. Empty lines are passed over.

    Raises:
        DatasetError: the file is missing or holds nothing, or the first line that is broken, by number.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: the data file can't be read: {error.strerror}.") from error
    conversations = tuple(
        Conversation(number, _messages(line, f"{path.name} line {number}"))
        for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
        if line.strip()
    )
    if not conversations:
        raise DatasetError(f"{path.name}: there are no examples in it; a line is {SHAPE}.")
    return ChatDataset(path.name, conversations, f"sha256:{hashlib.sha256(content).hexdigest()}")


def _messages(line: bytes, where: str) -> tuple[Message, ...]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise DatasetError(f"{where}: not JSON: {error}.") from error
    if not isinstance(record, dict) or record.keys() != {"messages"} or not isinstance(record["messages"], list):
        raise DatasetError(f"{where}: a line is {SHAPE} and no other key.")
    messages = tuple(_message(turn, f"{where}, message {number}") for number, turn in enumerate(record["messages"], 1))
    roles = [message.role for message in messages]
    if not roles or roles[-1] != "assistant":
        raise DatasetError(f"{where}: the last message must be the assistant's: it is what is learned.")
    if "user" not in roles[: roles.index("assistant")]:
        raise DatasetError(f"{where}: there is no user message before the assistant's.")
    if "system" in roles[1:]:
        raise DatasetError(f"{where}: a system message can only be the first.")
    return messages


def _message(turn: Any, where: str) -> Message:  # noqa: ANN401  — whatever the JSON says
    if not isinstance(turn, dict) or turn.keys() != {"role", "content"}:
        raise DatasetError(f'{where}: a message has the keys "role" and "content", and no other.')
    role, content = turn["role"], turn["content"]
    if not isinstance(role, str) or role not in ROLES:
        raise DatasetError(f'{where}: unknown role {json.dumps(role)}; use "system", "user" or "assistant".')
    if not isinstance(content, str) or (role != "system" and not content.strip()):
        raise DatasetError(f"{where}: the {role}'s content is empty or not text.")
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise DatasetError(f"{where}: the content holds half of a surrogate pair, which is no character.")
    return Message(role, content)
