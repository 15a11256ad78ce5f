import contextlib
import csv
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from trainer.dataset import (
    Completion,
    Conversation,
    Dataset,
    Message,
    PlainText,
    Preference,
    Row,
    Split,
    read_dataset,
    split_data,
    write_rows,
)
from trainer.dataset.hub import hub_records
from trainer.dataset.split import side
from trainer.errors import DatasetError, JobError
from trainer.job import TrainJob
from trainer.job_file import job_of

GOOD = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}'
HI = (Message("user", "Hi"), Message("assistant", "Hello"))


def job(data: str = "rows.jsonl", **keys: Any) -> TrainJob:
    return job_of({"base": "any", "data": data, "held_out": 0} | keys, {}, "job.yaml")


def read(content: bytes | str, name: str = "rows.jsonl", **keys: Any) -> Dataset:
    with TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_dataset(job(name, **keys), Path(folder)).train


def only_row(record: Any, **keys: Any) -> Row:
    (row,) = read(json.dumps(record), **keys).rows
    return row


def line(*turns: tuple[str, Any]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})


def test_lines_keep_their_numbers() -> None:
    dataset = read(f"\ufeff{GOOD}\n\n{line(('system', ''), ('user', 'a'), ('assistant', 'b'))}\r\n")
    assert [row.line for row in dataset.rows] == [1, 3]


@pytest.mark.parametrize(
    ("record", "row"),
    [
        (json.loads(GOOD), Conversation(1, HI)),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, Conversation(1, HI)),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, Conversation(1, HI)),
        (
            {"system": "S", "instruction": "Sum up:", "input": "Hi", "output": "Hello"},
            Conversation(1, (Message("system", "S"), Message("user", "Sum up:\n\nHi"), HI[1])),
        ),
        ({"prompt": "Hi ", "completion": "there"}, Completion(1, "Hi ", "there")),
        (
            {"prompt": [HI[0].as_turn()], "completion": [HI[1].as_turn()]},
            Conversation(1, HI, learns_last_only=True),
        ),
        ({"text": "Hi"}, PlainText(1, "Hi")),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "No"}, Preference(1, HI[:1], "Hello", "No")),
        (
            {
                "chosen": [turn.as_turn() for turn in HI],
                "rejected": [HI[0].as_turn(), Message("assistant", "No").as_turn()],
            },
            Preference(1, HI[:1], "Hello", "No"),
        ),
    ],
)
def test_every_format_becomes_a_row(record: Any, row: Row) -> None:
    assert only_row(record, objective="dpo" if isinstance(row, Preference) else "sft") == row


def test_tools_are_kept_with_their_arguments_as_an_object() -> None:
    call = {"id": "1", "function": {"name": "find", "arguments": '{"what": "tea"}'}}
    record = {
        "messages": [
            {"role": "user", "content": "Tea?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "yes", "tool_call_id": "1"},
            {"role": "assistant", "content": "Yes."},
        ],
        "tools": [{"type": "function", "function": {"name": "find", "parameters": None}}],
    }
    row = only_row(record)
    assert isinstance(row, Conversation)
    assert row.messages[1].as_turn()["tool_calls"][0]["function"]["arguments"] == {"what": "tea"}
    assert row.tools == '[{"type": "function", "function": {"name": "find"}}]'


def test_a_table_and_a_list_say_the_same_as_lines(tmp_path: Path) -> None:
    records = [{"instruction": "Say,\nplease", "output": "So"}, {"instruction": "And?", "output": 'It is "so"'}]
    (tmp_path / "rows.json").write_text(json.dumps(records, indent=2))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    parquet.write_table(pa.Table.from_pylist(records), tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["instruction", "output"])
        table.writeheader()
        table.writerows(records)
    read = {kind: read_dataset(job(f"rows.{kind}"), tmp_path).train for kind in ("json", "jsonl", "csv", "parquet")}
    assert len({dataset.fingerprint for dataset in read.values()}) == 1
    assert {kind: [row.line for row in dataset.rows] for kind, dataset in read.items()} == {
        "json": [2, 6],
        "jsonl": [1, 2],
        "csv": [2, 4],
        "parquet": [1, 2],
    }


def test_a_table_may_hold_messages_as_json() -> None:
    messages = json.dumps(json.loads(GOOD)["messages"]).replace('"', '""')
    assert read(f'messages\n"{messages}"\n', "rows.csv").rows == (Conversation(2, HI),)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ("{", "line 2 (Expecting"),
        ("[]", "line 2 (none of messages"),
        ('{"messages": "x"}', "line 2 (messages are a list"),
        ('{"messages": []}', "line 2 (the last message must be the assistant's"),
        (line(("user", "a")), "line 2 (the last message must be the assistant's"),
        (line(("user", " "), ("assistant", "b")), "line 2 (message 1: the user's content is empty"),
        (line(("user", "a"), ("assistant", 3)), "line 2 (message 2: the assistant's content is empty or not text"),
        (line(("human", "a"), ("assistant", "b")), 'line 2 (message 1: unknown role "human"'),
        (line(("assistant", "b")), "line 2 (there is no user message before"),
        (line(("user", "a"), ("system", "s"), ("assistant", "b")), "line 2 (a system message can only be the first"),
        (line(("user", "\ud800"), ("assistant", "b")), "line 2 (message 1: the user's content holds half"),
        ('{"messages": [{"role": "user", "content": "a", "weight": 0}]}', "line 2 (message 1: unknown key weight"),
        ('{"prompt": "a", "completion": ["b"]}', "line 2 (prompt and completion are both text"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "line 2 (chosen and rejected are the same"),
        ('{"instruction": "a", "output": "b", "history": []}', "line 2 (alpaca can't say history"),
        ("[" * 100_000, "line 2 ("),
    ],
)
def test_a_broken_line_is_named_by_its_number(broken: str, complaint: str) -> None:
    with pytest.raises(DatasetError) as refused:
        read(f"{GOOD}\n{broken}\n")
    assert f"rows.jsonl {complaint}" in refused.value.message
    assert "\n" not in refused.value.message


def test_all_broken_lines_are_named_at_once() -> None:
    with pytest.raises(DatasetError) as refused:
        read("{\n" * 30 + line(("user", "a")))
    assert "line 20 (" in refused.value.message
    assert "and 10 more" in refused.value.message
    assert "line 31 (the last message" in refused.value.message


def test_broken_rows_can_be_left_out() -> None:
    assert read(f"{GOOD}\n{{\n", checks={"broken_row": "drop"}).rows == (Conversation(1, HI),)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("rows.json", "[1, 2", "does not end with its only ]"),
        ("rows.json", f"[{GOOD}] x", "does not end with its only ]"),
        ("rows.csv", "text,text\na,b\n", "two columns have the same name"),
        ("rows.csv", "text\na,b\n", "2 cells below 1 names"),
        ("rows.csv", 'text\n"a\n', "not_a_table"),
        ("rows.parquet", "PAR1", "not_a_table"),
        ("rows.txt", "a", "data are read from .jsonl, .json, .csv, .parquet"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(name: str, content: str, complaint: str) -> None:
    with pytest.raises(DatasetError) as refused:
        read(content, name)
    assert complaint in refused.value.message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="can't be read: No such file"):
        read_dataset(job("none.jsonl"), tmp_path)


def test_the_format_is_that_of_all_rows_not_of_the_first() -> None:
    with pytest.raises(DatasetError, match=r"line 1 \(chat, as 2 are\), line 3 \(text\)"):
        read(f'{GOOD}\n{GOOD}\n{{"text": "a"}}\n')


def test_keys_that_nothing_is_learned_from_are_told(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "id": 7}\n')
    (finding,) = split_data(job(), tmp_path).findings
    assert (finding.code, finding.severity) == ("unused_keys", "warn")


def test_pairs_need_the_objective_that_learns_from_them() -> None:
    with pytest.raises(JobError, match="it takes objective: dpo"):
        read('{"prompt": "a", "chosen": "b", "rejected": "c"}')


@pytest.mark.parametrize("source", ["hub:owner/name", "hub:owner/name/config:test"])
def test_rows_come_from_the_hub(source: str) -> None:
    asked: list[Any] = []

    def load(*what: Any) -> list[Any]:
        asked.append(what)
        return [{"text": "a", "id": None}]

    assert list(hub_records(source, load)) == [(1, {"text": "a", "id": None})]
    assert asked == [("owner/name", "config", "test") if "config" in source else ("owner/name", None, "train")]


def test_a_name_that_no_hub_has_is_refused() -> None:
    with pytest.raises(DatasetError, match="write it as hub:OWNER/NAME"):
        list(hub_records("hub:name", lambda *_: []))


# --- the split ---

ROWS = st.lists(
    st.tuples(st.text(min_size=1, max_size=4), st.text(min_size=1, max_size=4)).map(
        lambda said: {"prompt": said[0], "completion": said[1]}
    ),
    min_size=1,
    max_size=60,
)


def split_of(records: list[Any], **keys: Any) -> Split:
    with TemporaryDirectory() as folder:
        (Path(folder) / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return read_dataset(job(**({"held_out": 0.2} | keys)), Path(folder))


def said(dataset: Dataset) -> list[tuple[str, str]]:
    return [(row.prompt, row.completion) for row in dataset.rows if isinstance(row, Completion)]


@given(ROWS, st.integers(0, 99))
def test_the_same_rows_and_seed_are_the_same_split(records: list[Any], seed: int) -> None:
    first, again = split_of(records, seed=seed), split_of(records, seed=seed)
    assert (first.train, first.held_out) == (again.train, again.held_out)
    assert len(first.train.rows) + len(first.held_out.rows) == len(records)
    assert first.train.rows


@given(ROWS)
def test_rows_that_say_the_same_are_on_one_side(records: list[Any]) -> None:
    split = split_of([*records, *({key: value.upper() for key, value in record.items()} for record in records)])
    sides = [{(a.casefold(), b.casefold()) for a, b in said(one)} for one in (split.train, split.held_out)]
    assert not {(a.casefold(), b.casefold()) for a, b in sides[0]} & sides[1]


@given(ROWS, ROWS)
def test_rows_that_are_added_move_no_other(records: list[Any], more: list[Any]) -> None:
    before, after = split_of(records), split_of(records + more)
    if len(before.held_out.rows) > 1:  # else perhaps the one that is held out where chance takes none
        assert set(said(before.held_out)) <= set(said(after.held_out))
        assert not set(said(before.train)) & set(said(after.held_out))


def test_few_rows_are_all_trained_on_and_it_is_said() -> None:
    split = split_of([{"text": str(number)} for number in range(9)])
    assert not split.held_out.rows
    assert [finding.code for finding in split.findings] == ["nothing_held_out"]


@given(st.integers(0, 200))
def test_of_ten_rows_at_least_one_is_held_out(seed: int) -> None:
    assert split_of([{"text": str(number)} for number in range(10)], seed=seed).held_out.rows


def test_held_out_rows_may_be_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(GOOD)
    (tmp_path / "test.json").write_text('[{"instruction": "Hi", "output": "Bye"}]')
    split = read_dataset(job(held_out="test.json"), tmp_path)
    assert (split.train.name, split.held_out.name) == ("rows.jsonl", "test.json")
    assert split.train.fingerprint != split.held_out.fingerprint


TEXT = st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=5).filter(str.strip)
MESSAGES = st.tuples(TEXT, TEXT).map(lambda said: (Message("user", said[0]), Message("assistant", said[1])))


@given(
    st.lists(MESSAGES.map(lambda messages: Conversation(0, messages)), min_size=1)
    | st.lists(MESSAGES.map(lambda messages: Conversation(0, messages, learns_last_only=True)), min_size=1)
    | st.lists(st.builds(Completion, st.just(0), TEXT, TEXT), min_size=1)
    | st.lists(st.builds(PlainText, st.just(0), TEXT), min_size=1)
    | st.lists(st.builds(Preference, st.just(0), MESSAGES.map(lambda turns: turns[:1]), TEXT, TEXT), min_size=1)
)
def test_frozen_rows_are_read_as_they_were(rows: list[Row]) -> None:
    if any(isinstance(row, Preference) and row.chosen == row.rejected for row in rows):
        return
    frozen = side(Dataset("rows", (), ""), rows)
    with TemporaryDirectory() as folder:
        write_rows(frozen, Path(folder) / "rows.jsonl")
        objective = "dpo" if isinstance(rows[0], Preference) else "sft"
        assert read_dataset(job(objective=objective), Path(folder)).train.fingerprint == frozen.fingerprint


# --- whatever is thrown at it ---


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda noise: noise + b"\n" + GOOD.encode()))
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet"])
def test_any_bytes_are_a_dataset_or_a_dataset_error(name: str, content: bytes) -> None:
    with contextlib.suppress(DatasetError):
        assert read(content, name).rows


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["role", "content", "function", "name"]), inner)
    ),
    max_leaves=5,
)
KEYS = [
    "messages",
    "tools",
    "conversations",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "instruction",
    "output",
    "text",
]
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"]) | JSON, "content": st.text(max_size=3) | JSON},
    optional={"tool_calls": JSON, "name": JSON},
)


@given(st.dictionaries(st.sampled_from(KEYS), JSON | st.lists(TURN, max_size=3), max_size=4))
def test_any_record_is_a_row_or_a_dataset_error(record: dict[str, Any]) -> None:
    with contextlib.suppress(DatasetError, JobError):
        for row in read(json.dumps(record)).rows:
            if isinstance(row, Conversation):
                assert row.messages[-1].role == "assistant"
                assert all(isinstance(message.content, str) for message in row.messages)
