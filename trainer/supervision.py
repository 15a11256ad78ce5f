"""Which tokens of a row are learned: what the assistant says, and where it stops, and nothing else.

The prompt is tokenized by itself and the answer after it, exactly as they meet in serving, so no token ever spans the
border. Needs no markers in the chat template (TRL's `assistant_only_loss` needs {% generation %}, which few have).
Raw text has no template: it begins as the tokenizer begins a text, and its end is learned.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol

from jinja2 import TemplateError

from trainer.dataset import Completion, Conversation, Dataset, Message, PlainText, Preference, Row
from trainer.errors import DatasetError, JobError

IGNORED = -100
"""The label of a token that is read but not learned (torch's cross-entropy skips it)."""
ROWS_AT_ONCE = 256
"""Through the tokenizer: a call for each row would take most of the time."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    chat_template: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    name_or_path: str
    """The folder that it was read from."""
    all_special_tokens: list[str]

    def apply_chat_template(self, conversation: list[dict[str, Any]], *, tokenize: bool, **options: Any) -> Any:  # noqa: ANN401
        """Render messages as the model reads them."""

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Any:  # noqa: ANN401
        """Tokenize."""

    def decode(self, token_ids: list[int]) -> Any:  # noqa: ANN401
        """Text again."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row as the model trains on it; `labels` is IGNORED or the token itself, in the same places."""

    input_ids: list[int]
    labels: list[int]

    @property
    def length(self) -> int:
        """In tokens."""
        return len(self.input_ids)

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return len(self.labels) - self.labels.count(IGNORED)

    @property
    def answer_ids(self) -> list[int]:
        """The last run of tokens that are learned."""
        end = next((place for place in range(len(self.labels), 0, -1) if self.labels[place - 1] != IGNORED), 0)
        start = next((place for place in range(end, 0, -1) if self.labels[place - 1] == IGNORED), 0)
        return self.labels[start:end]

    def cut(self, max_length: int) -> "Example":
        """Its first `max_length` tokens."""
        return Example(self.input_ids[:max_length], self.labels[:max_length])


@dataclass(frozen=True, slots=True)
class PreferenceExample:
    """A prompt and its two answers as tokens; each answer ends with the stop token."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def length(self) -> int:
        """In tokens, with the longer answer."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    @property
    def learned(self) -> int:
        """How many tokens of the two answers there are; none, if either has none."""
        return len(self.chosen_ids) + len(self.rejected_ids) if self.chosen_ids and self.rejected_ids else 0

    @property
    def answer_ids(self) -> list[int]:
        """The answer that is wanted."""
        return self.chosen_ids

    def cut(self, max_length: int) -> "PreferenceExample":
        """With answers that leave the whole within `max_length` tokens."""
        room = max(0, max_length - len(self.prompt_ids))
        return PreferenceExample(self.prompt_ids, self.chosen_ids[:room], self.rejected_ids[:room])


AnyExample = Example | PreferenceExample


class TemplateRefusal(DatasetError):  # noqa: N818  — told for a row, in place of its example
    """The base's chat template does not render the row, or leaves out what it says."""


class _Piece(NamedTuple):
    """A stretch of the row's text."""

    text: str
    is_learned: bool


def supervise(tokenizer: Tokenizer, dataset: Dataset, *, max_length: int) -> list[AnyExample]:
    """Every row as tokens and labels.

    Raises:
        JobError: the base has no chat template.
        DatasetError: a row that the template refuses, or that is longer than `max_length` tokens, by line.
    """
    examples = []
    for row, example in zip(dataset.rows, examples_of(tokenizer, dataset.rows), strict=True):
        where = f"{dataset.name} {dataset.unit} {row.line}"
        if isinstance(example, TemplateRefusal):
            raise DatasetError(f"{where}: {example.message}.")
        if example.length > max_length:
            raise DatasetError(
                f"{where}: {example.length} tokens, more than the job's max_length of {max_length}: "
                "shorten it or raise max_length."
            )
        examples.append(example)
    return examples


def examples_of(tokenizer: Tokenizer, rows: Sequence[Row]) -> Iterator[AnyExample | TemplateRefusal]:
    """For each row its example, or why it has none.

    Raises:
        JobError: chats, and the base has no chat template; or raw text, and its tokenizer has no eos_token.
    """
    _require_tokenizer_for(tokenizer, rows)
    opening = _opening(tokenizer)
    left = iter(rows)
    while batch := list(islice(left, ROWS_AT_ONCE)):
        rendered = [_rendered(tokenizer, row) for row in batch]
        texts = [piece.text for pieces in rendered if isinstance(pieces, list) for piece in pieces]
        tokens = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
        for row, pieces in zip(batch, rendered, strict=True):
            if isinstance(pieces, TemplateRefusal):
                yield pieces
            else:
                yield _example(row, pieces, list(islice(tokens, len(pieces))), opening, tokenizer.eos_token_id)


def _require_tokenizer_for(tokenizer: Tokenizer, rows: Sequence[Row]) -> None:
    is_chat = any(isinstance(row, Conversation | Preference) for row in rows)
    if is_chat and not tokenizer.chat_template:
        raise JobError("The base has no chat template, so chat data can't be rendered for it: use an instruct model.")
    if tokenizer.eos_token_id is None and any(isinstance(row, Completion | PlainText) for row in rows):
        raise JobError("The base's tokenizer has no eos_token, so raw text can't be taught to end: name one.")


def _opening(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer begins a text with, as it also does in serving (`/v1/completions`)."""
    [begun] = tokenizer([""], add_special_tokens=True)["input_ids"]
    return [begun[0]] if begun and begun[0] == tokenizer.bos_token_id else []


def _example(
    row: Row, pieces: list[_Piece], tokens: list[list[int]], opening: list[int], stop: int | None
) -> AnyExample:
    if isinstance(row, Preference):
        return PreferenceExample(*tokens)
    labels = [ids if piece.is_learned else [IGNORED] * len(ids) for piece, ids in zip(pieces, tokens, strict=True)]
    if isinstance(row, Completion | PlainText):
        end = [] if stop is None else [stop]
        tokens, labels = [opening, *tokens, end], [[IGNORED] * len(opening), *labels, end]
    return Example(list(chain.from_iterable(tokens)), list(chain.from_iterable(labels)))


def _rendered(tokenizer: Tokenizer, row: Row) -> list[_Piece] | TemplateRefusal:
    """The row's text, cut where what is learned begins and ends. A pair is its prompt and two answers."""
    try:
        match row:
            case Conversation():
                return list(_pieces(tokenizer, row))
            case Completion():
                return [_Piece(row.prompt, is_learned=False), _Piece(row.completion, is_learned=True)]
            case PlainText():
                return [_Piece(row.text, is_learned=True)]
            case Preference():
                return _pair(tokenizer, row)
    except TemplateRefusal as refusal:
        return refusal
    except (TemplateError, TypeError, ValueError, KeyError) as error:  # whatever a template trips over
        return TemplateRefusal(str(error).strip().partition("\n")[0] or type(error).__name__)


def _pieces(tokenizer: Tokenizer, conversation: Conversation) -> Iterator[_Piece]:
    """The rendered conversation, cut where the assistant's turns begin and end.

    A template that renders earlier turns differently once later ones follow (some drop a model's reasoning) leaves only
    the last answer to learn.
    """
    turns = [message.as_turn() for message in conversation.messages]
    options = {"tools": json.loads(conversation.tools)} if conversation.tools else {}
    whole = tokenizer.apply_chat_template(turns, tokenize=False, **options)
    _require_all_said(conversation, whole)
    done, last = 0, len(turns) - 1
    for count, turn in enumerate(turns):
        if turn["role"] != "assistant" or (conversation.learns_last_only and count != last):
            continue
        prompt = tokenizer.apply_chat_template(turns[:count], tokenize=False, add_generation_prompt=True, **options)
        is_end = count == last
        answered = whole if is_end else tokenizer.apply_chat_template(turns[: count + 1], tokenize=False, **options)
        if not (whole.startswith(answered) and answered.startswith(prompt)):
            if is_end:
                raise TemplateRefusal("the chat template does not render the prompt as the beginning of its answer")
            continue
        yield _Piece(whole[done : len(prompt)], is_learned=False)
        yield _Piece(whole[len(prompt) : len(answered)], is_learned=True)
        done = len(answered)


def _require_all_said(conversation: Conversation, whole: str) -> None:
    """Raise TemplateRefusal if the template leaves out tools, calls or the system message, as many do in silence."""
    called = [call for message in conversation.messages for call in json.loads(message.tool_calls or "[]")]
    offered = json.loads(conversation.tools or "[]")
    for what, function in [("calls of tools", call) for call in called] + [("tools", tool) for tool in offered]:
        if function["function"]["name"] not in whole:
            raise TemplateRefusal(f"the chat template leaves out {what}")
    first = conversation.messages[0]
    if first.role == "system" and first.content.strip() not in whole:
        raise TemplateRefusal("the chat template leaves out the system message")


def _pair(tokenizer: Tokenizer, row: Preference) -> list[_Piece]:
    """The prompt as it is asked in serving, and each answer as the template ends it."""
    turns = [message.as_turn() for message in row.prompt]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    pieces = [_Piece(prompt, is_learned=False)]
    for answer in (row.chosen, row.rejected):
        turn = Message("assistant", answer).as_turn()
        whole = tokenizer.apply_chat_template([*turns, turn], tokenize=False)
        if not whole.startswith(prompt):
            raise TemplateRefusal("the chat template does not render the prompt as the beginning of its answer")
        pieces.append(_Piece(whole[len(prompt) :], is_learned=True))
    return pieces
