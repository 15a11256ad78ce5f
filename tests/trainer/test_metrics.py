import sys
from collections.abc import Callable
from pathlib import Path
from shlex import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import JobError, JudgeError
from trainer.job_sections import Judge
from trainer.judging.metrics import exact_match, json_valid, scores, token_f1
from trainer.judging.statistics import paired_interval, sign_test, wilson_interval
from trainer.judging.values import Answer, Question, Task

SCHEMA = {"type": "object", "required": ["intent"], "properties": {"intent": {"enum": ["refund", "order"]}}}
QUESTIONS = tuple(
    Question(line=line, prompt=f"question {line}", prompt_ids=(1,), expected="yes", expected_tokens=1)
    for line in (1, 2)
)
ANSWERS = (Answer(text="yes", has_stopped=True), Answer(text="no", has_stopped=True))
Score = Callable[..., list[float]]


@pytest.fixture
def score(tmp_path: Path) -> Score:
    def by(
        name: str, *, rules: Judge | None = None, task: Task | None = None, answers: tuple[Answer, ...] = ANSWERS
    ) -> list[float]:
        return scores(name, QUESTIONS, answers, rules=rules or Judge(), task=task or Task(), beside=tmp_path)

    return by


def _python(code: str) -> Judge:
    return Judge(command=f"{sys.executable} -c {quote(code)}", command_seconds=60.0)


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [("It will  arrive\ntomorrow. ", "It will arrive tomorrow.", 1.0), ("it will", "It will", 0.0), ("", "yes", 0.0)],
)
def test_an_exact_match_looks_past_white_space_and_at_nothing_else(answer: str, expected: str, value: float) -> None:
    assert exact_match(answer, expected) == value


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [
        ("The cat!", "a cat", 1.0),
        ("black cat", "white cat", 0.5),
        ("dog", "cat", 0.0),
        ("", "", 1.0),
        ("", "cat", 0.0),
        ("cat cat", "cat", 2 / 3),
    ],
)
def test_f1_compares_words_as_squad_does(answer: str, expected: str, value: float) -> None:
    assert token_f1(answer, expected) == pytest.approx(value)


@given(st.text(), st.text())
def test_f1_is_a_share_and_the_same_both_ways(answer: str, expected: str) -> None:
    found = token_f1(answer, expected)

    assert 0 <= found <= 1
    assert found == pytest.approx(token_f1(expected, answer))
    assert token_f1(answer, answer) == 1


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (' {"a": 1}\n', 1.0),
        ("null", 1.0),
        ('{"a": NaN}', 0.0),
        ('{"a": 1, "a": 2}', 0.0),
        ('```json\n{"a": 1}\n```', 0.0),
        ("", 0.0),
        ("\ud800", 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_json_is_valid_as_strict_parsers_read_it(answer: str, value: float) -> None:
    assert json_valid(answer) == value


def test_json_must_satisfy_the_schema(score: Score) -> None:
    answers = (Answer(text='{"intent": "refund"}', has_stopped=True), Answer(text='{"intent": 1}', has_stopped=True))

    assert score("json_schema", task=Task(schema=SCHEMA), answers=answers) == [1.0, 0.0]


def test_a_schema_is_never_fetched(score: Score) -> None:
    answers = tuple(Answer(text="1", has_stopped=True) for _ in QUESTIONS)

    with pytest.raises(JobError, match="does not hold"):
        score("json_schema", task=Task(schema={"$ref": "http://127.0.0.1:9/schema"}), answers=answers)


def test_a_metric_without_its_schema_is_refused(score: Score) -> None:
    with pytest.raises(JudgeError, match="answer_schema"):
        score("json_schema")


def test_a_command_scores_each_answer(score: Score) -> None:
    code = (
        "import json,sys\nfor line in sys.stdin: row = json.loads(line); print(int(row['answer'] == row['expected']))"
    )

    assert score("command", rules=_python(code)) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("import sys; sys.exit('no dictionary')", "ended with code 1: no dictionary"),
        ("print(1)", "printed 1 numbers for 2 answers"),
        ("print('good'); print(1)", "printed 'good'"),
        ("print(7); print(1)", "printed '7'"),
        ("print('nan'); print(1)", "printed 'nan'"),
    ],
)
def test_a_command_that_fails_says_how(score: Score, code: str, complaint: str) -> None:
    with pytest.raises(JudgeError, match=complaint):
        score("command", rules=_python(code))


def test_a_command_that_takes_too_long_is_ended_with_its_children(score: Score) -> None:
    with pytest.raises(JudgeError, match=r"longer than 0\.2 s"):
        score("command", rules=Judge(command="cat > /dev/null; sleep 1000 | cat", command_seconds=0.2))


def test_chance_loses_as_often_as_it_gains() -> None:
    assert sign_test(0, 0) == 1
    assert sign_test(5, 0) == 1 / 32
    assert sign_test(2, 0) == 0.25
    assert sign_test(7, 6) == 0.5


@given(st.integers(0, 60), st.integers(0, 60))
def test_a_larger_loss_is_never_likelier_by_chance(lost: int, gained: int) -> None:
    assert 0 < sign_test(lost + 1, gained) <= sign_test(lost, gained) + 1e-12 <= 1 + 1e-12


@given(st.integers(1, 500), st.data())
def test_an_interval_holds_its_share(count: int, data: st.DataObject) -> None:
    share = data.draw(st.integers(0, count)) / count
    low, high = wilson_interval(share, count)

    assert 0 <= low <= share <= high <= 1
    assert high - low >= wilson_interval(share, 4 * count)[1] - wilson_interval(share, 4 * count)[0]


def test_a_paired_interval_sees_a_small_change_that_all_share() -> None:
    base = [float(number % 7) for number in range(50)]
    low, high = paired_interval(base, [value + 0.1 for value in base])

    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)


def test_a_paired_interval_weighs_by_tokens() -> None:
    low, high = paired_interval([0.0, 0.0], [10.0, 20.0], weights=[10.0, 20.0])

    assert (low, high) == pytest.approx((1.0, 1.0))
