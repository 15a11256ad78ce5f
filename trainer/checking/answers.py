"""What is wrong with single rows, as text: empty and cut answers, broken JSON, damaged characters, control tokens."""

import re
from collections.abc import Mapping
from typing import Any, Final

from adapters import parse_strictly
from trainer.checking.cut_answers import Habits, find_cut, habits_of
from trainer.checking.drops import Judged
from trainer.checking.said import answers, texts
from trainer.checking.watching import Watch
from trainer.dataset import Completion, complaints_of
from trainer.dataset.schema import Complain
from trainer.job import TrainJob
from trainer.job_sections import Policy
from trainer.supervision import Tokenizer

# The replacement character; UTF-8 that was read as Latin-1 or Windows-1252: "Ã©", "â€™", "Â ".
DAMAGED: Final = re.compile("\ufffd|[\xc2\xc3][\x80-\xbf]|\xe2\u20ac[\x80-\xbf\u0152-\u2122]|\xef\xbf\xbd|\xef\xbb\xbf")


def find_in_texts(
    side: Judged, job: TrainJob, tokenizer: Tokenizer | None, schema: Mapping[str, Any] | None, watch: Watch
) -> None:
    """All of them, for one side."""
    habits = habits_of([answer for _, row in side.rows() for answer in answers(row)])
    complain = complaints_of(schema) if schema is not None else None
    control = _control_tokens(tokenizer)
    rows = list(side.rows())
    for place, row in watch(rows, "reading rows", len(rows)):
        told = answers(row)
        if any(not answer.strip() for answer in told):
            side.found("empty_answer", job.checks.empty_answer, place)
        elif not isinstance(row, Completion) or job.answers == "json":
            _judge(side, place, told, job, habits, complain)
        _look_at_characters(side, place, "\n".join(texts(row)), control)


def _judge(
    side: Judged, place: int, told: tuple[str, ...], job: TrainJob, habits: Habits, complain: Complain | None
) -> None:
    for answer in told:
        if job.answers == "json":
            if why := _why_not_json(answer, complain):
                side.found("invalid_json", job.checks.invalid_json, place, why)
                return
        elif cut := find_cut(answer, habits):
            if cut.is_certain:
                side.found("cut_answer", job.checks.cut_answer, place, cut.why)
            else:
                side.found("perhaps_cut", Policy.WARN, place, cut.why)
            return


def _why_not_json(answer: str, complain: Complain | None) -> str | None:
    if answer.lstrip().startswith("```"):
        return "it is in a code fence"
    try:
        value = parse_strictly(answer.encode())
    except ValueError as error:
        return str(error)
    return complain(value) if complain else None


def _look_at_characters(side: Judged, place: int, text: str, control: re.Pattern[str] | None) -> None:
    if damaged := DAMAGED.search(text):
        around = text[max(0, damaged.start() - 10) : damaged.end() + 10]
        side.found("damaged_text", Policy.WARN, place, repr(around))
    if control and (token := control.search(text)):
        side.found("control_tokens", Policy.WARN, place, token[0])


def _control_tokens(tokenizer: Tokenizer | None) -> re.Pattern[str] | None:
    tokens = [token for token in tokenizer.all_special_tokens if token.strip()] if tokenizer else []
    return re.compile("|".join(map(re.escape, tokens))) if tokens else None
