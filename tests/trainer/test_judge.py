import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.architectures import make_peft_adapter
from tests.trainer.conftest import CONVERSATIONS, Command, WriteJob
from trainer.dataset import Completion, Conversation, Dataset, Message, PlainText, Preference, Row
from trainer.errors import JudgeError
from trainer.job_sections import Judge
from trainer.judging.abilities import Abilities, Item, read_abilities, shipped_abilities
from trainer.judging.choices import Choice, likelihoods_of_choices
from trainer.judging.judge import judge
from trainer.judging.report import Report, refusal, summary
from trainer.judging.report_page import as_html
from trainer.judging.speaker import Speaker, load_speaker
from trainer.judging.values import Judgement, Side, Task
from trainer.progress import Narrator
from trainer.supervision import IGNORED, Example, supervise

CHATS = tuple(
    Conversation(line, (Message("user", question), Message("assistant", answer)))
    for line, (question, answer) in enumerate(CONVERSATIONS, start=1)
)
WORDS = ("order", "password", "parcel", "Paris", "refund", "Monday", "security", "link", "hello", "seven")
PLAIN = Judge(max_loss_ratio=None, min_stop_rate=None, max_new_tokens=4)
JudgeIt = Callable[..., Report]


@pytest.fixture(scope="module")
def speaker(tiny: Path) -> Speaker:
    return load_speaker(Side("tiny", tiny), "float32")


@pytest.fixture(scope="module")
def abilities(speaker: Speaker) -> Abilities:
    """What the tiny model can do: forty questions, whose right answer is the one that it finds likeliest."""
    items = []
    for number in range(40):
        question = f"{WORDS[number % 10]} {WORDS[(number * 3 + number // 10) % 10]} {number}"
        words = [WORDS[(number + shift) % 10] for shift in range(4)]
        tokens = [
            speaker.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (f"Question: {question}\nAnswer:", *(f" {word}" for word in words))
        ]
        [found] = likelihoods_of_choices(speaker, [Choice(tuple(tokens[0]), tuple(map(tuple, tokens[1:])))], _unwatched)
        best = found.index(max(found))
        items.append(Item("words", question, (words[best], *(word for word in words if word != words[best]))))
    return Abilities(tuple(items))


@pytest.fixture
def said() -> StringIO:
    return StringIO()


@pytest.fixture
def judge_it(tiny: Path, said: StringIO, tmp_path: Path) -> JudgeIt:
    """Judge the adapter or the model in a folder beside the tiny base, on chats unless rows are given."""
    narrator = Narrator(Console(file=said, soft_wrap=True))

    def run(folder: Path, rows: tuple[Row, ...] = CHATS, rules: Judge = PLAIN, **asked: Any) -> Report:
        is_adapter = (folder / "adapter_config.json").exists()
        result = Side("result", tiny, folder) if is_adapter else Side("result", folder)
        metrics = asked.pop("metrics", ("exact_match", "f1"))
        wanted = Judgement(
            base=Side("tiny", tiny, fingerprint=asked.pop("fingerprint", None)),
            result=result,
            task=task_of(tiny, rows, metrics),
            rules=rules,
            abilities=asked.pop("abilities", None),
            beside=tmp_path,
        )
        return judge(replace(wanted, **asked), narrator)

    return run


@pytest.fixture
def mild(tiny: Path, tmp_path: Path) -> Path:
    return make_peft_adapter(tiny, tmp_path / "mild", strength=0.001)


@pytest.fixture
def ruined(tiny: Path, tmp_path: Path) -> Path:
    return make_peft_adapter(tiny, tmp_path / "ruined", strength=3.0)


@pytest.fixture
def silent(tiny: Path, tmp_path: Path) -> Path:
    """A whole model that always stops at once: its head finds every token but the stop token unlikely."""
    folder = tmp_path / "silent"
    shutil.copytree(tiny, folder)
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if name.startswith("model.layers.")]:
        weights[name] = torch.zeros_like(weights[name])
    stop = AutoTokenizer.from_pretrained(tiny).eos_token_id
    weights["model.embed_tokens.weight"] = torch.ones_like(weights["model.embed_tokens.weight"])
    weights["lm_head.weight"] = torch.zeros_like(weights["lm_head.weight"])
    weights["lm_head.weight"][stop] = 1.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _unwatched(done: int, total: int) -> None:
    assert done <= total


def task_of(tiny: Path, rows: tuple[Row, ...], metrics: tuple[str, ...] = ()) -> Task:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    examples = supervise(tokenizer, Dataset("held-out.jsonl", rows, "sha256:0"), max_length=1024) if rows else []
    return Task(held_out=tuple(examples), rows=rows, metrics=metrics)


# --- may it go live? --------------------------------------------------------------------------------------------------


def test_an_adapter_that_got_worse_on_the_regression_set_may_not_go_live(
    judge_it: JudgeIt, abilities: Abilities, ruined: Path
) -> None:
    report = judge_it(ruined, rows=(), abilities=abilities)

    assert report.base.abilities is not None
    assert report.base.abilities.value == 1
    assert not report.passed
    why = refusal(report)
    assert why is not None
    assert "general questions right, the base 40" in why
    assert "\n" not in why


def test_an_adapter_that_changes_little_may_go_live(judge_it: JudgeIt, abilities: Abilities, mild: Path) -> None:
    report = judge_it(mild, rows=(), abilities=abilities)

    assert report.passed
    assert refusal(report) is None
    assert report.thresholds


def test_every_threshold_that_failed_is_named(judge_it: JudgeIt, ruined: Path) -> None:
    rules = Judge(min_metrics={"exact_match": 0.9, "command": 0.5}, max_loss_ratio=0.01, max_new_tokens=4)

    report = judge_it(ruined, rules=rules)

    assert [each.name for each in report.thresholds if not each.passed] == [
        "exact_match", "command", "max_loss_ratio", "min_stop_rate",
    ]  # fmt: skip
    assert "exact_match 0.000 of 4 answers" in (refusal(report) or "")
    assert "command of at least 0.5 is asked for, and was not measured" in (refusal(report) or "")


def test_weights_that_give_no_numbers_do_not_pass(judge_it: JudgeIt, mild: Path) -> None:
    weights = load_file(mild / "adapter_model.safetensors")
    first = next(iter(weights))
    weights[first] = torch.full_like(weights[first], float("nan"))
    save_file(weights, mild / "adapter_model.safetensors")

    report = judge_it(mild, rules=Judge(max_new_tokens=4, min_stop_rate=None))

    assert not report.passed
    assert any("is not a number" in note for note in report.notes)
    assert Report.model_validate_json(report.model_dump_json()).passed is False
    json.dumps(summary(report), allow_nan=False)


# --- what is measured -------------------------------------------------------------------------------------------------


def test_the_held_out_loss_is_the_mean_over_all_learned_tokens(judge_it: JudgeIt, tiny: Path, mild: Path) -> None:
    long = Conversation(9, (Message("user", "Thank you. " * 40), Message("assistant", "You are welcome. " * 9)))
    rows = (*CHATS, long)

    report = judge_it(mild, rows)

    model, total, count = AutoModelForCausalLM.from_pretrained(tiny), 0.0, 0
    for example in task_of(tiny, rows).examples:
        labels = torch.tensor([example.labels])
        learned = int((labels != IGNORED).sum())
        with torch.no_grad():
            total += float(model(torch.tensor([example.input_ids]), labels=labels).loss) * learned
        count += learned
    assert report.base.loss == pytest.approx(total / count, rel=1e-5)
    assert report.base.perplexity == pytest.approx(math.exp(total / count), rel=1e-4)


def test_an_answer_is_the_same_alone_and_in_a_batch(speaker: Speaker, tiny: Path) -> None:
    tokens = [example.input_ids for example in task_of(tiny, CHATS).examples]
    prompts = [ids[: 3 + 2 * index] for index, ids in enumerate(tokens)]

    together = speaker.answers(prompts, max_new_tokens=12, watch=_unwatched)

    alone = [speaker.answers([prompt], max_new_tokens=12, watch=_unwatched)[0] for prompt in prompts]
    assert list(together) == alone


def test_a_choice_is_as_likely_as_its_whole_row(speaker: Speaker) -> None:
    choices = [Choice((1, 20, 30, 40), ((50, 60, 70), (80,))), Choice((90, 91), ((92,), (93, 94), (95, 96, 97, 98)))]

    found = likelihoods_of_choices(speaker, choices, _unwatched)

    for choice, likelihoods in zip(choices, found, strict=True):
        rows = [
            Example([*choice.question, *answer], [IGNORED] * len(choice.question) + list(answer))
            for answer in choice.answers
        ]
        whole = [each.log_probability for each in speaker.likelihoods(rows, _unwatched)]
        assert likelihoods == pytest.approx(whole, abs=1e-4)


def test_a_whole_model_is_judged_beside_its_base(judge_it: JudgeIt, silent: Path) -> None:
    report = judge_it(silent)

    assert report.base.stop_rate is not None
    assert report.result.stop_rate is not None
    assert report.base.stop_rate.value == 0
    assert report.result.stop_rate.value == 1
    assert {sample.result for sample in report.samples} == {""}


def test_completions_are_answered_without_a_template(judge_it: JudgeIt, silent: Path) -> None:
    report = judge_it(silent, (Completion(1, "one two three", ""), Completion(2, "one two", " three")), PLAIN)

    assert [sample.prompt for sample in report.samples] == ["one two three", "one two"]
    assert report.result.metrics["exact_match"].value == 0.5


def test_plain_text_has_a_loss_and_no_answers(judge_it: JudgeIt, mild: Path) -> None:
    report = judge_it(mild, (PlainText(1, "Where is my order?"),))

    assert report.base.loss is not None
    assert (report.samples, report.base.metrics, report.base.stop_rate) == ((), {}, None)


def test_pairs_are_judged_by_which_answer_is_likelier(judge_it: JudgeIt, mild: Path, ruined: Path) -> None:
    pairs = tuple(
        Preference(line, (Message("user", question),), chosen=answer, rejected="one two three")
        for line, (question, answer) in enumerate(CONVERSATIONS, start=1)
    )

    same, worse = (judge_it(folder, pairs, Judge(min_stop_rate=None, max_new_tokens=4)) for folder in (mild, ruined))

    assert same.base.loss == pytest.approx(math.log(2))
    assert same.result.loss == pytest.approx(math.log(2), abs=0.01)
    assert worse.result.loss != pytest.approx(math.log(2), abs=0.01)
    assert 0 <= same.base.metrics["preference"].value <= 1
    assert same.base.perplexity is None


def test_a_prompt_is_put_in_the_tokens_that_it_was_trained_in(judge_it: JudgeIt, mild: Path) -> None:
    several = Conversation(
        1, (Message("user", "one"), Message("assistant", "two"), Message("user", "three"), Message("assistant", "four"))
    )

    [sample] = judge_it(mild, (several,)).samples

    assert sample.prompt == "user: one\nassistant: two\nuser: three"
    assert sample.expected == "four"


def test_the_examples_that_are_answered_come_from_all_over_the_set(judge_it: JudgeIt, silent: Path) -> None:
    rows = tuple(replace(CHATS[0], line=line) for line in range(1, 11))

    report = judge_it(silent, rows, replace_rules(max_examples=4))

    assert [sample.line for sample in report.samples] == [1, 3, 6, 8]
    assert report.counts["held_out"] == 10


def test_a_few_examples_are_said_to_be_few(judge_it: JudgeIt, mild: Path) -> None:
    report = judge_it(mild)

    assert any("Only 4 held-out examples" in note for note in report.notes)
    assert {each.verdict for each in report.differences if each.name != "loss"} == {"no clear change"}


def test_what_was_measured_of_a_base_is_found_again(
    judge_it: JudgeIt, abilities: Abilities, mild: Path, tmp_path: Path, said: StringIO
) -> None:
    cached: dict[str, Any] = {"abilities": abilities, "fingerprint": "sha256:1", "cache": tmp_path / "judged"}
    first = judge_it(mild, **cached)
    assert "found again" not in said.getvalue()

    again = judge_it(mild, **cached)

    assert "found again" in said.getvalue()
    assert again.model_copy(update={"seconds": first.seconds}) == first


def test_a_damaged_cache_is_measured_anew(judge_it: JudgeIt, mild: Path, tmp_path: Path) -> None:
    cached: dict[str, Any] = {"fingerprint": "sha256:1", "cache": tmp_path / "judged"}
    first = judge_it(mild, **cached)
    [file] = (tmp_path / "judged").iterdir()
    file.write_text("{")

    assert judge_it(mild, **cached).base == first.base


def test_a_side_that_can_not_be_loaded_is_named(judge_it: JudgeIt, mild: Path) -> None:
    (mild / "adapter_model.safetensors").write_bytes(b"no weights")

    with pytest.raises(JudgeError, match=r"result: PEFT can't load the adapter"):
        judge_it(mild)


# --- the report -------------------------------------------------------------------------------------------------------


def test_a_report_can_be_written_and_read(judge_it: JudgeIt, abilities: Abilities, mild: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.5, "event": "step"}\n{"step": 1, "held_out_loss": 2.25}\nbroken\n'
    )
    report = judge_it(mild, abilities=abilities, curve=tmp_path / "metrics.jsonl")

    assert Report.model_validate_json(report.model_dump_json()) == report
    assert report.curve == ((1.0, 2.5),)
    assert report.held_out_curve == ((1.0, 2.25),)
    assert len(json.dumps(summary(report))) < 8192


def test_a_page_shows_what_a_model_said_and_runs_none_of_it(judge_it: JudgeIt, mild: Path) -> None:
    question = Conversation(1, (Message("user", "<script>alert(1)</script>"), Message("assistant", "<b>no</b>")))

    page = as_html(judge_it(mild, (question,), Judge(max_new_tokens=4)))

    assert "<script>" not in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page
    assert "min_stop_rate" in page


# --- the regression set -----------------------------------------------------------------------------------------------


def test_the_set_that_ships_is_sound() -> None:
    items = shipped_abilities().items

    assert len(items) >= 100
    assert len({item.question + str(item.choices) for item in items}) == len(items)
    for item in items:
        assert len(set(item.choices)) == len(item.choices)
        assert bool(item.choices) != bool(item.pattern)


def test_a_set_of_ones_own_takes_its_place(tmp_path: Path) -> None:
    file = tmp_path / "birds.jsonl"
    file.write_text(
        '{"question": "Which flies?", "answer": "a", "wrong": ["b"]}\n\n{"question": "?", "pattern": "^yes"}\n'
    )

    first, second = read_abilities(file).items

    assert (first.topic, first.chance) == ("birds", 0.5)
    assert second.accepts("Yes, it does.")
    assert not second.accepts("Oh yes.")


@pytest.mark.parametrize(
    "line",
    ['{"question": "?"}', '{"question": "?", "answer": "a", "wrong": []}', "[", '{"question": "?", "pattern": "("}'],
)
def test_a_line_that_is_no_item_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "birds.jsonl").write_text(f"\n{line}\n")

    with pytest.raises(JudgeError, match=r"birds\.jsonl line 2"):
        read_abilities(tmp_path)


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="no item"):
        read_abilities(tmp_path)


# --- the verb ---------------------------------------------------------------------------------------------------------


def test_the_verb_judges_an_adapter_by_a_job(
    lorikeet: Command, write_job: WriteJob, mild: Path, tmp_path: Path
) -> None:
    job = write_job(held_out="chat.jsonl", judge={"regression": False, "max_new_tokens": 4, "min_stop_rate": None})

    page = tmp_path / "report.html"
    outcome = lorikeet(
        "train", "judge", mild, "--job", job, "--set", "judge.max_loss_ratio=1.5", "--html", page, "--json"
    )

    assert outcome.code == 0, outcome.err
    assert outcome.json["passed"]
    assert outcome.json["counts"]["held_out"] == len(CONVERSATIONS)
    assert "tiny" in page.read_text()


def test_the_verb_ends_with_one_if_it_did_not_pass(
    lorikeet: Command, write_job: WriteJob, mild: Path, tmp_path: Path
) -> None:
    write_job()
    quick = ("--set", "judge.regression=false", "--set", "judge.max_new_tokens=4")
    wanted = ("--data", tmp_path / "chat.jsonl", "--base", "tiny", "--min", "f1=0.99")

    outcome = lorikeet("train", "judge", mild, *wanted, *quick)

    assert outcome.code == 1
    assert "FAILED  f1" in outcome.out
    assert "did not pass" in outcome.out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "give --job JOB.YAML or --data FILE"),
        (("--data", "chat.jsonl", "--job", "job.yaml"), "give one of them"),
        (("--data", "chat.jsonl", "--min", "f1"), "METRIC=SHARE"),
        (("--data", "nowhere.jsonl", "--base", "tiny"), "nowhere.jsonl"),
    ],
)
def test_the_verb_says_what_it_lacks(lorikeet: Command, mild: Path, options: tuple[str, ...], complaint: str) -> None:
    outcome = lorikeet("train", "judge", mild, *options)

    assert outcome.code == 2
    assert complaint in outcome.err


def replace_rules(**keys: Any) -> Judge:
    return PLAIN.model_copy(update=keys)
