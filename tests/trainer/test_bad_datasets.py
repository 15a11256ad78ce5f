"""Ten data sets that nobody should train on: each is refused before anything is trained, by name and line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import Command, WriteJob

TOPICS = ("parcel", "invoice", "password", "refund", "address", "warranty", "delivery", "account", "receipt", "voucher")


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def good_rows() -> list[dict[str, Any]]:
    return [chat(f"What about my {topic}, please?", f"We look after the {topic} at once today.") for topic in TOPICS]


def write(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def own_base(tiny: Path, tmp_path: Path) -> Path:
    """A base of the test's own, to break."""
    return Path(shutil.copytree(tiny, tmp_path / "own"))


@pytest.fixture
def refused(lorikeet: Command, write_job: WriteJob, home: Path, tmp_path: Path) -> Callable[..., str]:
    """Check data in a job on the base tiny, and try to train on them; what the check said."""

    def check(path: Path, **keys: object) -> str:
        job = write_job(data=path.name, **keys)
        before = sorted(tmp_path.iterdir())
        checked = lorikeet("train", "check", job)
        assert checked.code == 2
        assert checked.err.strip().splitlines()[-1].startswith("lorikeet: ")
        assert sorted(tmp_path.iterdir()) == before
        run = lorikeet("train", "run", job)
        assert run.code == 2
        assert run.err.strip().splitlines()[-1].startswith(f"lorikeet: {path.name}")
        assert not (home / "runs").exists()
        return checked.out

    return check


def test_the_good_rows_that_the_bad_ones_are_made_of_are_sound(
    lorikeet: Command, write_job: WriteJob, tmp_path: Path
) -> None:
    write(tmp_path, good_rows())
    checked = lorikeet("train", "check", write_job(data="rows.jsonl"))
    assert checked.code == 0, checked.out
    assert "error" not in checked.out


def test_duplicates_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    rows = good_rows()
    rows[6] = chat("what about my  PARCEL, please?", "We look after the parcel at once today.")
    said = refused(write(tmp_path, rows))
    assert "duplicates: 1 row saying the same as an earlier one: rows.jsonl line 7 (as line 1)" in said


def test_leakage_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    write(tmp_path, [good_rows()[3], chat("Is there tea in the kitchen?", "There is some tea left.")], "test.jsonl")
    said = refused(write(tmp_path, good_rows()), held_out="test.jsonl")
    assert "leakage: 1 row trained on and held out as well" in said
    assert "rows.jsonl line 4 (as held-out test.jsonl line 1)" in said


def test_near_leakage_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(60)]
    other = [*words[:59], "else"]
    write(tmp_path, [chat(" ".join(words), "Yes, that is right.")], "test.jsonl")
    said = refused(write(tmp_path, [*good_rows(), chat(" ".join(other), "Yes, that is right.")]), held_out="test.jsonl")
    assert "% as held-out test.jsonl line 1)" in said


def test_answers_without_a_stop_token_are_refused(
    refused: Callable[..., str], lorikeet: Command, own_base: Path, tmp_path: Path
) -> None:
    template = own_base / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", "</s>"))
    assert lorikeet("base", own_base).code == 0
    said = refused(write(tmp_path, good_rows()), base="own", held_out=0)
    assert (
        "no_stop_token: 10 rows whose answer does not end with a stop token that is learned: rows.jsonl line 1" in said
    )


def test_rows_of_which_nothing_is_learned_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    rows = [*good_rows(), chat("Why? " * 150, "Because.")]
    said = refused(write(tmp_path, rows), max_length=128, checks={"too_long": "truncate"}, held_out=0)
    assert "nothing_learned: 1 row of which no token is learned: rows.jsonl line 11 (max_length leaves none" in said


def test_a_template_that_leaves_out_the_answer_is_refused(
    refused: Callable[..., str], lorikeet: Command, own_base: Path, tmp_path: Path
) -> None:
    template = own_base / "chat_template.jinja"
    template.write_text(
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ message['content'] }}{% endif %}{% endfor %}"
    )
    assert lorikeet("base", own_base).code == 0
    said = refused(write(tmp_path, good_rows()), base="own", held_out=0)
    assert "nothing_learned: 10 rows of which no token is learned: rows.jsonl line 1 (the chat template" in said


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("Open the settings, choose security, and then the", "it ends with 'the'"),
        ("Open the settings (they are behind the", "a ( is not closed"),
        ("This does it:\n```python\nprint('hello')", "a code fence is not closed"),
        ("Whatever it was, we look after it at once tod", "it ends with 'tod', half of 'today'"),
    ],
)
def test_truncated_answers_are_refused(refused: Callable[..., str], tmp_path: Path, answer: str, why: str) -> None:
    said = refused(write(tmp_path, [*good_rows(), chat("How is it done?", answer)]), held_out=0)
    assert f"cut_answer: 1 row with an answer that ends in the middle: rows.jsonl line 11 ({why})" in said


def test_answers_that_all_end_at_one_length_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    long = "goes on and on about it without coming to its end for a long while"
    rows = [chat(f"Tell me of {topic}.", f"The {topic} {long}"[:60]) for topic in TOPICS]
    said = refused(write(tmp_path, rows), held_out=0)
    assert "it ends unfinished at 60 characters, as others do" in said


def test_broken_json_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object", "required": ["topic"]}')
    rows = [chat(f"Sort: {topic}", json.dumps({"topic": topic})) for topic in TOPICS]
    rows[2] = chat("Sort: the sea", '{"topic": "sea"')
    rows[4] = chat("Sort: the sky", '{"thema": "sky"}')
    rows[5] = chat("Sort: the sun", '```json\n{"topic": "sun"}\n```')
    said = refused(write(tmp_path, rows), answers="json", answer_schema="schema.json", held_out=0)
    assert (
        "invalid_json: 3 rows with an answer that is not the JSON asked for: rows.jsonl line 3 (it is not JSON" in said
    )
    assert "line 5 (it: 'topic' is a required property), line 6 (it is in a code fence)" in said


def test_lines_that_are_no_json_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    path = write(tmp_path, good_rows())
    path.write_text(path.read_text() + '{"messages": [\n')
    assert "not_json: 1 row not JSON: rows.jsonl line 11 (" in refused(path)


def test_wrong_roles_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    rows = good_rows()
    rows[1]["messages"][0]["role"] = "customer"
    rows[3]["messages"].reverse()
    said = refused(write(tmp_path, rows))
    assert 'rows.jsonl line 2 (message 1: unknown role "customer"), line 4 (the last message must be' in said


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_refused(refused: Callable[..., str], tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert "empty_file: there are no examples in it: rows.jsonl line 1" in refused(path)


def test_mixed_formats_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    rows = [*good_rows(), {"instruction": "Say so.", "output": "So."}, {"text": "So it is."}]
    said = refused(write(tmp_path, rows))
    assert "mixed_formats: the data have more than one format: rows.jsonl line 1 (chat, as 10 are)" in said
    assert "line 11 (alpaca), line 12 (text)" in said


def test_a_wrong_encoding_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b"".join(json.dumps(row).encode() + b"\n" for row in good_rows()) + '{"text": "café"}'.encode("latin-1")
    )
    assert "wrong_encoding: 1 row not in UTF-8: rows.jsonl line 11 (byte 14: 0xe9, which would be 'é'" in refused(path)


def test_utf_16_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, good_rows())), encoding="utf-16")
    assert "wrong_encoding: 1 row not in UTF-8: rows.jsonl line 1 (byte 1: the file is in UTF-16" in refused(path)
