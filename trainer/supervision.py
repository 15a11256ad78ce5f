"""Which tokens of a conversation are learned: what the assistant says, and where it stops, and nothing else.

The prompt is tokenized by itself and the answer after it, exactly as they meet in serving, so no token ever spans the
border. Needs no markers in the chat template (TRL's `assistant_only_loss` needs {% generation %}, which few have).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from trainer.dataset import ChatDataset, Conversation
from trainer.errors import DatasetError, JobError

IGNORED = -100
"""The label of a token that is read but not learned (torch's cross-entropy skips it)."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    chat_template: str | None

    def apply_chat_template(self, conversation: list[dict[str, str]], *, tokenize: bool, **options: Any) -> Any:  # noqa: ANN401
        """Render messages as the model reads them."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:  # noqa: ANN401
        """Tokenize."""


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation as the model trains on it; `labels` is IGNORED or the token itself, in the same places."""

    input_ids: list[int]
    labels: list[int]

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return sum(label != IGNORED for label in self.labels)


def supervise(tokenizer: Tokenizer, dataset: ChatDataset, *, max_length: int) -> list[Example]:
    """Every conversation as tokens and labels.

    Raises:
        JobError: the base has no chat template.
        DatasetError: a conversation is longer than `max_length` tokens, by line.
    """
    if not tokenizer.chat_template:
        raise JobError("The base has no chat template, so chat data can't be rendered for it: use an instruct model.")
    examples = []
    for conversation in dataset.conversations:
        example = _example(tokenizer, conversation)
        if len(example.input_ids) > max_length:
            raise DatasetError(
                f"{dataset.name} line {conversation.line}: {len(example.input_ids)} tokens, more than the job's "
                f"max_length of {max_length}: shorten it or raise max_length."
            )
        examples.append(example)
    return examples


def _example(tokenizer: Tokenizer, conversation: Conversation) -> Example:
    example = Example([], [])
    for text, is_learned in _pieces(tokenizer, conversation):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]  # the template writes its own
        example.input_ids.extend(tokens)
        example.labels.extend(tokens if is_learned else [IGNORED] * len(tokens))
    return example


def _pieces(tokenizer: Tokenizer, conversation: Conversation) -> Iterator[tuple[str, bool]]:
    """The rendered conversation, cut where the assistant's turns begin and end.

    A template that renders earlier turns differently once later ones follow (some drop a model's reasoning) leaves only
    the last answer to learn.
    """
    turns = [{"role": message.role, "content": message.content} for message in conversation.messages]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    done = 0
    for count, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        prompt = tokenizer.apply_chat_template(turns[:count], tokenize=False, add_generation_prompt=True)
        answered = tokenizer.apply_chat_template(turns[: count + 1], tokenize=False)
        is_last = count == len(turns) - 1
        if not (whole.startswith(answered) and answered.startswith(prompt)):
            if is_last:
                raise JobError("The base's chat template does not render a prompt as the beginning of its answer.")
            continue
        yield whole[done : len(prompt)], False
        yield whole[len(prompt) : len(answered)], True
        done = len(answered)
