"""How right an answer is, from 0 to 1, by each metric that a job can name."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from adapters import parse_strictly
from trainer.dataset.schema import Complain, complaints_of
from trainer.errors import JudgeError
from trainer.job_sections import Judge
from trainer.judging.command import run_command
from trainer.judging.values import Answer, Question, Task

ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def scores(
    name: str, questions: Sequence[Question], answers: Sequence[Answer], *, rules: Judge, task: Task, beside: Path
) -> list[float]:
    """One value from 0 to 1 for each answer, by the metric of that name.

    Raises:
        JudgeError: the user's command fails, or there is no schema. JobError: the schema refers to another.
    """
    if name == "command":
        return run_command(rules.command or "", questions, answers, seconds=rules.command_seconds, beside=beside)
    if name == "json_schema":
        if task.schema is None:
            raise JudgeError("judge: the metric json_schema needs answer_schema, a JSON Schema file.")
        complain = complaints_of(task.schema)
        return [json_schema(answer.text, complain) for answer in answers]
    pairs = [(answer.text, question.expected) for answer, question in zip(answers, questions, strict=True)]
    match name:
        case "exact_match":
            return [exact_match(*pair) for pair in pairs]
        case "f1":
            return [token_f1(*pair) for pair in pairs]
        case "json_valid":
            return [json_valid(answer) for answer, _ in pairs]
        case _:
            raise JudgeError(f"judge: there is no metric {name}.")


def exact_match(answer: str, expected: str) -> float:
    """Whether they are the same text, but for white space: runs of it are one blank, none at the ends."""
    return float(" ".join(answer.split()) == " ".join(expected.split()))


def token_f1(answer: str, expected: str) -> float:
    """SQuAD's: the harmonic mean of precision and recall of the words, without case, punctuation and articles."""
    said, right = _words(answer), _words(expected)
    if not said or not right:
        return float(said == right)
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right))


def json_valid(answer: str) -> float:
    """Whether it is one JSON text, as strict parsers read it: no NaN, no key twice."""
    return float(_parsed(answer) is not None)


def json_schema(answer: str, complain: Complain) -> float:
    """Whether it is JSON that satisfies the schema."""
    parsed = _parsed(answer)
    return float(parsed is not None and complain(parsed[0]) is None)


def _parsed(answer: str) -> tuple[Any] | None:
    try:
        return (parse_strictly(answer.strip().encode("utf-8", "surrogatepass")),)
    except ValueError:
        return None


def _words(text: str) -> list[str]:
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()
