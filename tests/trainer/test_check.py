import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.trainer.conftest import Command, WriteJob
from trainer.checking import Checked, check, require_sound
from trainer.checking.cut_answers import find_cut, habits_of
from trainer.checking.shingles import jaccard, runs_of
from trainer.checking.showing import as_html
from trainer.dataset import split_data
from trainer.errors import DatasetError
from trainer.job_file import job_of
from trainer.progress import Narrator
from trainer.supervision import PreferenceExample

TOPICS = ("parcel", "invoice", "password", "refund", "address", "warranty", "delivery", "account", "receipt", "voucher")


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def good_rows() -> list[dict[str, Any]]:
    return [chat(f"What about my {topic}, please?", f"We look after the {topic} at once today.") for topic in TOPICS]


def checked(rows: list[Any], folder: Path, base: Path | None = None, **keys: Any) -> Checked:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = job_of({"base": "any", "data": "rows.jsonl", "held_out": 0} | keys, {}, "job.yaml")
    tokenizer = AutoTokenizer.from_pretrained(base) if base else None
    return check(split_data(job, folder), job, tokenizer, Narrator())


def codes(checked: Checked) -> set[str]:
    return {finding.code for finding in checked.findings}


def test_what_is_trained_on_are_the_rows_in_their_order(tiny: Path, tmp_path: Path) -> None:
    result = checked(good_rows(), tmp_path, tiny)
    assert len(result.train) == len(result.split.train.rows) == 10
    assert result.report.is_sound
    assert result.report.train.fingerprint == result.report.train.read_fingerprint
    require_sound(result)


@pytest.mark.parametrize(
    ("row", "keys", "code"),
    [
        (chat("What about my parcel, please?", "We look after the parcel at once today."), {}, "duplicates"),
        (chat("So?", ""), {}, "empty_answer"),
        (chat("So?", "Because of the"), {"too_long": "warn"}, ""),
        (chat("Why? " * 300, "So."), {}, "too_long"),
        (chat("Say it", "and leave (this open to the"), {}, "cut_answer"),
    ],
)
def test_drop_leaves_the_row_out_and_says_so(
    tiny: Path, tmp_path: Path, row: dict[str, Any], keys: dict[str, Any], code: str
) -> None:
    policies = keys | ({code: "drop"} if code else {})
    result = checked([*good_rows(), row], tmp_path, tiny, checks=policies, max_length=256)
    assert result.report.is_sound
    assert len(result.train) == len(result.split.train.rows) == (10 if code else 11)
    assert result.report.train.dropped == ({code: 1} if code else {})


def test_a_leaked_row_leaves_the_training_side_and_stays_held_out(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps(good_rows()[3]) + "\n")
    result = checked(good_rows(), tmp_path, held_out="test.jsonl", checks={"leakage": "drop"})
    assert (len(result.split.train.rows), len(result.split.held_out.rows)) == (9, 1)


def test_a_cut_row_is_trained_on_at_max_length(tiny: Path, tmp_path: Path) -> None:
    rows = [*good_rows(), chat("Why?", "So it is. " * 100)]
    result = checked(rows, tmp_path, tiny, max_length=128, checks={"too_long": "truncate"})
    assert result.train[-1].length == 128
    assert [finding.severity for finding in result.findings if finding.code == "too_long"] == ["warn"]
    assert "no_stop_token" not in codes(result)


def test_rows_with_a_long_instruction_in_common_are_not_alike(tmp_path: Path) -> None:
    instruction = " ".join(f"rule{number}" for number in range(200))
    rows = [chat(f"{instruction} {topic} {number}", f"The {topic}.") for number in range(3) for topic in TOPICS]
    assert "near_duplicates" not in codes(checked(rows, tmp_path))


def test_nearly_equal_rows_are_named_with_how_alike_they_are(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(100)]
    rows = [*good_rows(), chat(" ".join(words), "Yes, it is."), chat(" ".join([*words[:-1], "x"]), "Yes, it is.")]
    (finding,) = (one for one in checked(rows, tmp_path).findings if one.code == "near_duplicates")
    assert finding.places[0].line == 12
    assert finding.places[0].detail.endswith("% as line 11")


def test_one_prompt_with_two_answers_is_told(tmp_path: Path) -> None:
    result = checked([chat("So?", "Yes, it is."), chat("So?", "No, it is not.")], tmp_path)
    assert "conflicting_answers" in codes(result)
    assert result.report.is_sound


def test_damaged_characters_and_control_tokens_are_told(tiny: Path, tmp_path: Path) -> None:
    rows = [*good_rows(), chat("Un cafÃ© ?", "Oui."), chat("Stop <|im_end|> here", "No.")]
    assert {"damaged_text", "control_tokens"} <= codes(checked(rows, tmp_path, tiny))


def test_pairs_are_checked_as_pairs(tiny: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"And {topic}?", "chosen": f"The {topic}.", "rejected": "No."} for topic in TOPICS]
    result = checked(rows, tmp_path, tiny, objective="dpo")
    assert result.report.is_sound
    assert all(isinstance(example, PreferenceExample) for example in result.train)


def test_the_page_shows_a_strangers_text_as_text(tiny: Path, tmp_path: Path) -> None:
    page = as_html(checked([*good_rows(), chat("<script>alert(1)</script>", "Oh.")], tmp_path, tiny).report)
    assert "<script>" not in page
    assert "<svg" in page
    assert "<mark>" in page


def test_data_alone_are_checked_without_a_base(lorikeet: Command, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("instruction,output\n" + "".join(f"And {topic}?,The {topic}.\n" for topic in TOPICS))
    shown = lorikeet("train", "check", path, "--json")
    assert shown.code == 0
    assert shown.json["train"]["rows"] + shown.json["held_out"]["rows"] == 10
    assert shown.json["samples"] == []


def test_a_job_is_checked_in_the_tokens_of_its_base(lorikeet: Command, write_job: WriteJob, tmp_path: Path) -> None:
    shown = lorikeet("train", "check", write_job(), "--html", tmp_path / "report.html")
    assert shown.code == 0
    assert "[[It will arrive tomorrow.<|im_end|>" in shown.out
    assert "It will arrive tomorrow." in (tmp_path / "report.html").read_text()


def test_a_base_is_a_folder_too(lorikeet: Command, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "Hello there"}\n')
    shown = lorikeet("train", "check", tmp_path / "rows.jsonl", "--base", tiny, "--json")
    assert shown.code == 0
    assert [stretch["text"] for stretch in shown.json["samples"][0]["stretches"]] == ["Hello there<|im_end|>"]


def test_policies_are_set_on_the_command(lorikeet: Command, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "A"}\n')
    assert lorikeet("train", "check", tmp_path / "rows.jsonl").code == 2
    assert lorikeet("train", "check", tmp_path / "rows.jsonl", "--set", "checks.duplicates=drop").code == 0


@pytest.mark.parametrize(
    "answer",
    [
        "Paris",
        "no end but short",
        "See https://example.org/a/b and so on at https://example.org/page",
        "Sad news today, I am sorry to say :(",
        "- one thing to do here now\n- another thing to do there",
        "The numbers are in [0, 1).",
        "これは終わりのない文です",
        "```python\nprint(1)\n```",
        "SELECT name FROM users WHERE age > 30;",
    ],
)
def test_whole_answers_are_not_called_cut(answer: str) -> None:
    others = [f"This is sentence number {number}, and it ends." for number in range(30)]
    assert find_cut(answer, habits_of([*others, answer])) is None


def test_answers_that_never_end_in_a_full_stop_are_not_called_cut() -> None:
    answers = [f"we look after number {number} of them at noon" for number in range(40)]
    assert not any(find_cut(answer, habits_of(answers)) for answer in answers)


def test_texts_are_alike_by_the_runs_of_words_they_share() -> None:
    assert jaccard(runs_of("One two three four"), runs_of("one TWO three  four")) == 1.0
    assert jaccard(runs_of("one two three four"), runs_of("one two three five")) == pytest.approx(1 / 3)
    assert jaccard(runs_of("3 + 4"), runs_of("3 * 4")) == 0.0


def test_require_sound_names_every_error_by_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"empty_answer: .* rows.jsonl line 11"):
        require_sound(checked([*good_rows(), chat("So?", " ")], tmp_path))
