"""The JSON and the events of the fake engine's answers, as OpenAI and Anthropic have them."""

import json
from collections.abc import Iterator
from typing import Any, Protocol

from server.engine.protocol import EngineDeadError

ANSWER_ID = "fake"


class Page(Protocol):
    """One answer: whole, or as the events of a stream."""

    def whole(self, texts: list[str], completion_tokens: int) -> dict[str, Any]:
        """All of it, with a text for each choice."""
        ...

    def begin(self) -> Iterator[str]:
        """What stands before the first word."""
        ...

    def step(self, words: tuple[str, ...]) -> Iterator[str]:
        """A word for each choice."""
        ...

    def fail(self, error: EngineDeadError) -> Iterator[str]:
        """What stands in place of the next word."""
        ...

    def end(self, completion_tokens: int) -> Iterator[str]:
        """What stands after the last word, or after a failure."""
        ...


class CompletionPage:
    """Of OpenAI's chat and completions."""

    def __init__(self, model: str, prompt_tokens: int, *, is_chat: bool, has_usage: bool) -> None:
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._is_chat = is_chat
        self._has_usage = has_usage

    def whole(self, texts: list[str], completion_tokens: int) -> dict[str, Any]:
        """All of it."""
        choices = [
            {"index": index, "finish_reason": "length", "logprobs": None}
            | ({"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text})
            for index, text in enumerate(texts)
        ]
        return self._frame("", choices) | {"usage": self._usage(completion_tokens)}

    def begin(self) -> Iterator[str]:
        """What stands before the first word."""
        yield from ()

    def step(self, words: tuple[str, ...]) -> Iterator[str]:
        """The next words."""
        choices = [
            {"index": index, "finish_reason": None, "logprobs": None}
            | ({"delta": {"content": f"{word} "}} if self._is_chat else {"text": f"{word} "})
            for index, word in enumerate(words)
        ]
        yield _event(self._frame(self._suffix, choices))

    def fail(self, error: EngineDeadError) -> Iterator[str]:
        """What stands in place of the next word."""
        yield _event(failure(error))

    def end(self, completion_tokens: int) -> Iterator[str]:
        """What stands after the last."""
        if self._has_usage:
            yield _event(self._frame(self._suffix, []) | {"usage": self._usage(completion_tokens)})
        yield "data: [DONE]\n\n"

    @property
    def _suffix(self) -> str:
        return ".chunk" if self._is_chat else ""

    def _usage(self, completion_tokens: int) -> dict[str, int]:
        total = self._prompt_tokens + completion_tokens
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}

    def _frame(self, suffix: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion" if self._is_chat else "text_completion"
        return {"id": ANSWER_ID, "object": kind + suffix, "created": 0, "model": self._model, "choices": choices}


class ResponsesPage:
    """Of OpenAI's responses."""

    def __init__(self, model: str, prompt_tokens: int) -> None:
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._said = ""
        self._number = 0

    def whole(self, texts: list[str], completion_tokens: int) -> dict[str, Any]:
        """All of it."""
        total = self._prompt_tokens + completion_tokens
        tokens = {"input_tokens": self._prompt_tokens, "output_tokens": completion_tokens, "total_tokens": total}
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        return self._frame("completed", " ".join(texts)) | {"usage": tokens | details}

    def begin(self) -> Iterator[str]:
        """What stands before the first word."""
        yield self._numbered("response.created", response=self._frame("in_progress", None))

    def step(self, words: tuple[str, ...]) -> Iterator[str]:
        """The next words."""
        self._said += f"{words[0]} "
        place = {"item_id": ANSWER_ID, "output_index": 0, "content_index": 0, "logprobs": []}
        yield self._numbered("response.output_text.delta", delta=f"{words[0]} ", **place)

    def fail(self, error: EngineDeadError) -> Iterator[str]:
        """What stands in place of the next word."""
        yield self._numbered("error", **failure(error))

    def end(self, completion_tokens: int) -> Iterator[str]:
        """What stands after the last."""
        yield self._numbered("response.completed", response=self.whole([self._said], completion_tokens))

    def _numbered(self, kind: str, **fields: Any) -> str:  # noqa: ANN401  — JSON
        self._number += 1
        return _event({"type": kind, "sequence_number": self._number, **fields}, kind)

    def _frame(self, status: str, text: str | None) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "output_text", "text": text, "annotations": []}]
        message = {"type": "message", "id": ANSWER_ID, "status": status, "role": "assistant", "content": content}
        return {
            "id": ANSWER_ID,
            "object": "response",
            "created_at": 0,
            "status": status,
            "model": self._model,
            "output": [] if text is None else [message],
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
        }


class MessagesPage:
    """Of Anthropic's messages."""

    def __init__(self, model: str, prompt_tokens: int) -> None:
        self._model = model
        self._prompt_tokens = prompt_tokens

    def whole(self, texts: list[str], completion_tokens: int) -> dict[str, Any]:
        """All of it."""
        content: list[dict[str, Any]] = [{"type": "text", "text": text} for text in texts]
        return self._frame(content, completion_tokens) | {"stop_reason": "max_tokens"}

    def begin(self) -> Iterator[str]:
        """What stands before the first word."""
        yield _event({"type": "message_start", "message": self._frame([], 0)}, "message_start")
        block = {"type": "text", "text": ""}
        yield _event({"type": "content_block_start", "index": 0, "content_block": block}, "content_block_start")

    def step(self, words: tuple[str, ...]) -> Iterator[str]:
        """The next words."""
        delta = {"type": "text_delta", "text": f"{words[0]} "}
        yield _event({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")

    def fail(self, error: EngineDeadError) -> Iterator[str]:
        """What stands in place of the next word."""
        yield _event({"type": "error", **failure(error)}, "error")

    def end(self, completion_tokens: int) -> Iterator[str]:
        """What stands after the last."""
        yield _event({"type": "content_block_stop", "index": 0}, "content_block_stop")
        delta, usage = {"stop_reason": "max_tokens", "stop_sequence": None}, {"output_tokens": completion_tokens}
        yield _event({"type": "message_delta", "delta": delta, "usage": usage}, "message_delta")
        yield _event({"type": "message_stop"}, "message_stop")

    def _frame(self, content: list[dict[str, Any]], completion_tokens: int) -> dict[str, Any]:
        return {
            "id": ANSWER_ID,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": self._prompt_tokens, "output_tokens": completion_tokens},
        }


def failure(error: EngineDeadError) -> dict[str, Any]:
    """How vLLM says that it is gone."""
    return {"error": {"message": str(error), "type": "InternalServerError", "code": 500}}


def _event(fields: dict[str, Any], kind: str | None = None) -> str:
    name = f"event: {kind}\n" if kind else ""
    return f"{name}data: {json.dumps(fields, separators=(',', ':'))}\n\n"
