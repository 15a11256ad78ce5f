import contextlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset import ROLES, ChatDataset, read_chat
from trainer.errors import DatasetError

GOOD = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}'


def read(content: bytes) -> ChatDataset:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "chat.jsonl"
        path.write_bytes(content)
        return read_chat(path)


def line(*turns: tuple[str, Any]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})


def test_lines_become_conversations_and_keep_their_numbers() -> None:
    dataset = read(f"{GOOD}\n\n{line(('system', ''), ('user', 'a'), ('assistant', 'b'))}\r\n".encode())
    assert [conversation.line for conversation in dataset.conversations] == [1, 3]
    assert [message.role for message in dataset.conversations[1].messages] == ["system", "user", "assistant"]


def test_the_fingerprint_is_the_bytes_digest() -> None:
    assert read(GOOD.encode()).fingerprint == read(GOOD.encode()).fingerprint
    assert read(GOOD.encode()).fingerprint != read(GOOD.encode() + b"\n").fingerprint


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: a line is"),
        ('{"messages": "x"}', "line 2: a line is"),
        ('{"messages": [], "tools": []}', "line 2: a line is"),
        ('{"messages": []}', "line 2: the last message must be the assistant's"),
        (line(("user", "a")), "line 2: the last message must be the assistant's"),
        (line(("user", "a"), ("assistant", " ")), "line 2, message 2: the assistant's content is empty"),
        (line(("user", "a"), ("assistant", None)), "line 2, message 2: the assistant's content is empty or not text"),
        (line(("human", "a"), ("assistant", "b")), 'line 2, message 1: unknown role "human"'),
        (line(("assistant", "b")), "line 2: there is no user message before"),
        (line(("user", "a"), ("system", "s"), ("assistant", "b")), "line 2: a system message can only be the first"),
        (line(("user", "\ud800"), ("assistant", "b")), "line 2, message 1: the content holds half"),
        ('{"messages": [{"role": "user"}]}', "line 2, message 1: a message has the keys"),
        ("[" * 100_000, "line 2: not JSON"),
    ],
)
def test_a_broken_line_is_named_by_its_number(broken: str, complaint: str) -> None:
    with pytest.raises(DatasetError) as refused:
        read(f"{GOOD}\n{broken}\n".encode())
    assert f"chat.jsonl {complaint}" in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_examples_is_refused(content: bytes) -> None:
    with pytest.raises(DatasetError, match="no examples"):
        read(content)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="can't be read: No such file"):
        read_chat(tmp_path / "none.jsonl")


@given(st.binary(max_size=60).map(lambda noise: noise + b"\n" + GOOD.encode()))
def test_any_bytes_are_a_dataset_or_a_dataset_error(content: bytes) -> None:
    with contextlib.suppress(DatasetError):
        assert read(content).conversations


JSON = st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
TURN = st.fixed_dictionaries({"role": st.sampled_from(sorted(ROLES)) | JSON, "content": st.text(max_size=3) | JSON})


@given(st.lists(TURN, max_size=4))
def test_whatever_is_read_ends_with_an_answer(turns: list[dict[str, Any]]) -> None:
    try:
        dataset = read(json.dumps({"messages": turns}).encode())
    except DatasetError:
        return
    for conversation in dataset.conversations:
        assert conversation.messages[-1].role == "assistant"
        assert all(isinstance(message.content, str) for message in conversation.messages)
