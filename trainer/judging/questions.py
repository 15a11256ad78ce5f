"""What is put to either side: the prompt of each held-out row, in the very tokens that it is trained in."""

from collections.abc import Sequence
from typing import Any, Final

from trainer.dataset import Completion, Conversation, Message, Preference, Row
from trainer.judging.values import Question, Task
from trainer.supervision import IGNORED, AnyExample, PreferenceExample

ANSWER_TOKENS: Final = 512
"""The most that an answer may take unless the job says more."""
SPARE_TOKENS: Final = 8
"""For one-word answers: room to say more than the word, and to stop."""


def questions_of(task: Task, tokenizer: Any, limit: int) -> tuple[Question, ...]:  # noqa: ANN401  — transformers
    """The prompts of the held-out rows with the answers expected: `limit` at the most, from all over the set.

    Plain text asks nothing, so there is none of it.
    """
    pairs = zip(task.rows, task.held_out, strict=True)
    asked = [found for row, example in pairs if (found := _question(row, example, tokenizer)) is not None]
    step = max(1.0, len(asked) / limit)
    return tuple(asked[int(index * step)] for index in range(min(limit, len(asked))))


def answer_tokens(questions: Sequence[Question], stated: int | None) -> int:
    """How long an answer may become: what the job says, else twice the longest that is expected."""
    if stated is not None:
        return stated
    return min(ANSWER_TOKENS, 2 * max((question.expected_tokens for question in questions), default=0) + SPARE_TOKENS)


def _question(row: Row, example: AnyExample, tokenizer: Any) -> Question | None:  # noqa: ANN401  — transformers
    answer = example.answer_ids
    prompt = (
        example.prompt_ids
        if isinstance(example, PreferenceExample)
        else _before_answer(example.labels, example.input_ids)
    )
    match row:
        case Conversation(messages=[*turns, last]):
            # Calls of tools are text only once the template has written them.
            expected = last.content if last.tool_calls is None else tokenizer.decode(answer, skip_special_tokens=True)
            shown = _shown(turns)
        case Preference(prompt=turns, chosen=expected):
            shown = _shown(turns)
        case Completion(prompt=shown, completion=expected):
            pass
        case _:
            return None
    if not prompt:
        return None
    return Question(
        line=row.line, prompt=shown, prompt_ids=tuple(prompt), expected=expected, expected_tokens=len(answer)
    )


def _before_answer(labels: Sequence[int], tokens: Sequence[int]) -> Sequence[int]:
    """All that stands before the last run of learned tokens."""
    end = next((place for place in range(len(labels), 0, -1) if labels[place - 1] != IGNORED), 0)
    start = next((place for place in range(end, 0, -1) if labels[place - 1] == IGNORED), 0)
    return tokens[:start]


def _shown(turns: Sequence[Message]) -> str:
    if len(turns) == 1:
        return turns[0].content
    return "\n".join(f"{turn.role}: {turn.content}" for turn in turns)
