"""The formats in which a row can be written, and the row that each means. A row that means none is a BrokenRow."""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from trainer.dataset.problems import BrokenRow
from trainer.dataset.turns import conversation_of, from_sharegpt, messages_of, prompt_of, text_of, tools_of
from trainer.dataset.values import Completion, Conversation, Message, PlainText, Preference, Row
from trainer.job import DataFormat

Fields = Mapping[str, Any]
"""A record without its nulls."""

MEANINGFUL: Final = frozenset(
    {"tools", "functions", "history", "images", "image", "audio", "videos", "system", "weight"}
)
"""Keys that say something about what is learned: where a format has no such key, the row is broken, not half read."""


class Shape(NamedTuple):
    """What marks a format, and how a row of it is read."""

    marks: frozenset[str]
    """Keys of which all are there."""
    keys: frozenset[str]
    """All keys that are read."""
    read: Callable[[int, Fields], Row]


def format_of(record: Any) -> DataFormat:  # noqa: ANN401  — whatever the JSON says
    """The format that a record is written in. Raises BrokenRow if it is none of them."""
    if isinstance(record, dict):
        for written, shape in SHAPES.items():
            if all(record.get(key) is not None for key in shape.marks):
                return written
    has = f"; it has {', '.join(map(str, record))[:80]}" if isinstance(record, dict) and record else ""
    known = ", ".join("+".join(sorted(shape.marks)) for shape in SHAPES.values())
    raise BrokenRow("wrong_shape", f"none of {known}{has}")


def row_of(record: Any, line: int, written: DataFormat) -> tuple[Row, frozenset[str]]:  # noqa: ANN401  — the same
    """The row that a record means in a format, and the keys that nothing was learned from. Raises BrokenRow."""
    shape = SHAPES[written]
    if not isinstance(record, dict):
        raise BrokenRow("wrong_shape", "not an object")
    fields = {str(key): value for key, value in record.items() if value is not None}
    if not shape.marks <= fields.keys():
        missing = ", ".join(sorted(shape.marks - fields.keys()))
        raise BrokenRow(
            "wrong_shape", f"{written} has the keys {', '.join(sorted(shape.marks))}: {missing} is not there"
        )
    unused = frozenset(fields.keys() - shape.keys)
    if refused := sorted(unused & MEANINGFUL):
        raise BrokenRow("wrong_shape", f"{written} can't say {', '.join(refused)}")
    return shape.read(line, fields), unused


def _chat(line: int, fields: Fields) -> Row:
    return Conversation(line, conversation_of(fields["messages"]), tools=tools_of(fields.get("tools")))


def _sharegpt(line: int, fields: Fields) -> Row:
    return Conversation(line, conversation_of([*_system(fields), *from_sharegpt(fields["conversations"])]))


def _alpaca(line: int, fields: Fields) -> Row:
    asked = "\n\n".join(text for key in ("instruction", "input") if (text := _text(fields.get(key, ""), key)).strip())
    turns = [*_system(fields), {"role": "user", "content": asked}, {"role": "assistant", "content": fields["output"]}]
    return Conversation(line, conversation_of(turns))


def _system(fields: Fields) -> list[dict[str, Any]]:
    return [{"role": "system", "content": fields["system"]}] if fields.get("system") else []


def _prompt_completion(line: int, fields: Fields) -> Row:
    prompt, completion = fields["prompt"], fields["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        if "tools" in fields:
            raise BrokenRow("wrong_shape", "tools are for messages")
        return Completion(line, _text(prompt, "the prompt"), _text(completion, "the completion"))
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise BrokenRow("wrong_shape", "prompt and completion are both text, or both lists of messages")
    messages = (*prompt_of(prompt), _only_answer(completion, "completion"))
    return Conversation(line, messages, learns_last_only=True, tools=tools_of(fields.get("tools")))


def _text_alone(line: int, fields: Fields) -> Row:
    return PlainText(line, text_of(fields["text"], "the text"))


def _preference(line: int, fields: Fields) -> Row:
    sides = [fields["chosen"], fields["rejected"]]
    if isinstance(sides[0], str) != isinstance(sides[1], str):
        raise BrokenRow("wrong_shape", "chosen and rejected are both text, or both lists of messages")
    if isinstance(sides[0], str):
        prompt, answers = _asked(fields.get("prompt")), [_text(side, "an answer") for side in sides]
    else:
        prompt, answers = _pair_of_lists(fields.get("prompt"), messages_of(sides[0]), messages_of(sides[1]))
    if answers[0] == answers[1]:
        raise BrokenRow("broken_pair", "chosen and rejected are the same")
    return Preference(line, prompt, answers[0], answers[1])


def _asked(prompt: Any) -> tuple[Message, ...]:  # noqa: ANN401  — whatever the JSON says
    if prompt is None:
        raise BrokenRow("wrong_shape", "there is no prompt")
    return prompt_of(prompt) if isinstance(prompt, list) else (Message("user", text_of(prompt, "the prompt")),)


def _pair_of_lists(
    prompt: Any,  # noqa: ANN401  — whatever the JSON says
    chosen: tuple[Message, ...],
    rejected: tuple[Message, ...],
) -> tuple[tuple[Message, ...], list[str]]:
    """The prompt of two answers; it may also stand in both lists, before the answer, as TRL allows."""
    if len(chosen) == 1 and len(rejected) == 1:
        return _asked(prompt), [_only_answer([side[0].as_turn()], "each side").content for side in (chosen, rejected)]
    if chosen[:-1] != rejected[:-1] or not chosen or chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise BrokenRow("broken_pair", "the two conversations do not differ in the assistant's last message alone")
    before = prompt_of([message.as_turn() for message in chosen[:-1]])
    if prompt is not None and _asked(prompt)[-1].content != before[-1].content:
        raise BrokenRow("broken_pair", "the prompt is not the one that the conversations begin with")
    return before, [_only_answer([side[-1].as_turn()], "each side").content for side in (chosen, rejected)]


def _only_answer(turns: list[Any], where: str) -> Message:
    messages = messages_of(turns)
    if [message.role for message in messages] != ["assistant"]:
        raise BrokenRow("wrong_role", f"{where} is one message of the assistant's")
    if where == "each side" and messages[0].tool_calls:
        raise BrokenRow("broken_pair", "a call of a tool can't be preferred, only text")
    return messages[0]


def _text(value: Any, where: str) -> str:  # noqa: ANN401  — whatever the JSON says
    return text_of(value, where, may_be_empty=True)


# In the order in which they are looked for: several have a "text" or a "prompt" beside what marks them.
SHAPES: Final[Mapping[DataFormat, Shape]] = {
    DataFormat.CHAT: Shape(frozenset({"messages"}), frozenset({"messages", "tools"}), _chat),
    DataFormat.SHAREGPT: Shape(frozenset({"conversations"}), frozenset({"conversations", "system"}), _sharegpt),
    DataFormat.PREFERENCE: Shape(
        frozenset({"chosen", "rejected"}), frozenset({"prompt", "chosen", "rejected"}), _preference
    ),
    DataFormat.PROMPT_COMPLETION: Shape(
        frozenset({"prompt", "completion"}), frozenset({"prompt", "completion", "tools"}), _prompt_completion
    ),
    DataFormat.ALPACA: Shape(
        frozenset({"instruction", "output"}), frozenset({"instruction", "input", "output", "system"}), _alpaca
    ),
    DataFormat.TEXT: Shape(frozenset({"text"}), frozenset({"text"}), _text_alone),
}
