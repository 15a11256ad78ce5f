"""The fake engine's HTTP half: its routes, and answers around the words that the engine makes.

A whole answer stops when the client hangs up, as under vLLM's `with_cancellation`. What answers is named by REQUEST.
"""

import asyncio
import base64
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from server.engine.fake_pages import CompletionPage, MessagesPage, Page, ResponsesPage, failure
from server.engine.fake_schema import REQUESTS
from server.engine.protocol import REQUEST, EngineDeadError

DEFAULT_MAX_TOKENS = 8
MAX_TOKENS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
Words = AsyncGenerator[tuple[str, ...], None]
"""The steps of one generation: a word for each choice."""


class Speaker(Protocol):
    """What makes the words."""

    def generate(self, prompt: str, *, n: int, max_tokens: int) -> Words:
        """One step at a time."""
        ...

    def embed(self, text: str) -> tuple[float, ...]:
        """Numbers that follow from the text and the adapter. Raises EngineDeadError."""
        ...


class FakeApp:
    """OpenAI's and Anthropic's routes."""

    def __init__(self, speaker: Speaker, *, max_model_len: int) -> None:
        self._speaker = speaker
        self._max_model_len = max_model_len
        self.seen_bodies: list[dict[str, Any]] = []
        self.seen_headers: list[dict[str, str]] = []
        answers: Mapping[str, Callable[[Request, dict[str, Any]], Coroutine[Any, Any, Response]]] = {
            "/v1/chat/completions": partial(self._complete, is_chat=True),
            "/v1/completions": partial(self._complete, is_chat=False),
            "/v1/responses": self._respond,
            "/v1/messages": self._message,
            "/v1/messages/count_tokens": self._count,
            "/v1/embeddings": self._embed,
        }
        self.asgi: ASGIApp = Starlette(
            routes=[
                Route(path, partial(self._read, path, answer), methods=["POST"]) for path, answer in answers.items()
            ]
        )

    async def _read(
        self, path: str, answer: Callable[[Request, dict[str, Any]], Coroutine[Any, Any, Response]], request: Request
    ) -> Response:
        fields: dict[str, Any] = await request.json()
        self.seen_bodies.append(fields)
        self.seen_headers.append(dict(request.headers))
        try:
            REQUESTS[path].model_validate(fields)
        except ValidationError as error:
            wrong = error.errors()[0]
            place = ".".join(map(str, wrong["loc"]))
            return _refusal(f"{place or 'body'}: {wrong['msg']}", str(wrong["loc"][0]) if wrong["loc"] else None)
        try:
            return await answer(request, fields)
        except EngineDeadError as error:
            return JSONResponse(failure(error), 500)

    async def _complete(self, request: Request, fields: dict[str, Any], *, is_chat: bool) -> Response:
        prompt = _said(fields["messages"]) if is_chat else str(fields["prompt"])
        has_usage = bool((fields.get("stream_options") or {}).get("include_usage"))
        page = CompletionPage(_model(fields), _count(prompt), is_chat=is_chat, has_usage=has_usage)
        return await self._answer(request, fields, prompt, page)

    async def _respond(self, request: Request, fields: dict[str, Any]) -> Response:
        prompt = str(fields["input"])
        return await self._answer(request, fields, prompt, ResponsesPage(_model(fields), _count(prompt)))

    async def _message(self, request: Request, fields: dict[str, Any]) -> Response:
        prompt = _said(fields["messages"])
        return await self._answer(request, fields, prompt, MessagesPage(_model(fields), _count(prompt)))

    async def _count(self, _request: Request, fields: dict[str, Any]) -> Response:
        return JSONResponse({"input_tokens": _count(_said(fields["messages"]))})

    async def _embed(self, _request: Request, fields: dict[str, Any]) -> Response:
        asked = fields["input"]
        texts = asked if isinstance(asked, list) and isinstance(asked[0], str) else [str(asked)]
        vectors = [self._speaker.embed(text) for text in texts]
        pack = _packed if fields.get("encoding_format") == "base64" else list
        rows = [{"object": "embedding", "index": index, "embedding": pack(row)} for index, row in enumerate(vectors)]
        tokens = sum(map(_count, texts))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "model": _model(fields), "data": rows, "usage": usage})

    async def _answer(self, request: Request, fields: dict[str, Any], prompt: str, page: Page) -> Response:
        max_tokens = next((fields[name] for name in MAX_TOKENS if fields.get(name)), DEFAULT_MAX_TOKENS)
        if max_tokens + _count(prompt) > self._max_model_len:
            return _refusal(f"This model's maximum context length is {self._max_model_len} tokens (/opt/model/x)")
        words = self._speaker.generate(prompt, n=fields.get("n") or 1, max_tokens=max_tokens)
        if fields.get("stream"):
            return StreamingResponse(_events(words, page), media_type="text/event-stream")
        return await _unless_gone(request, words, page)


async def _events(words: Words, page: Page) -> AsyncIterator[str]:
    tokens, has_begun = 0, False
    async with aclosing(words):
        try:
            async for step in words:
                tokens += len(step)
                for event in () if has_begun else page.begin():
                    yield event
                has_begun = True
                for event in page.step(step):
                    yield event
        except EngineDeadError as error:
            for event in page.fail(error):
                yield event
    for event in page.end(tokens):
        yield event


async def _unless_gone(request: Request, words: Words, page: Page) -> Response:
    """The whole answer; generation stops when the client hangs up."""
    generating = asyncio.create_task(_gather(words))
    leaving = asyncio.create_task(_hang_up(request))
    try:
        await asyncio.wait({generating, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        unfinished = [task for task in (generating, leaving) if not task.done()]
        for task in unfinished:
            task.cancel()
    if unfinished:
        await asyncio.wait(unfinished)  # gather would end with their cancellation in place of this task's own
    if generating.cancelled():
        return JSONResponse(None)
    steps = generating.result()
    texts = [" ".join(choice) for choice in zip(*steps, strict=True)]
    return JSONResponse(page.whole(texts, sum(map(len, steps))))


async def _gather(words: Words) -> list[tuple[str, ...]]:
    return [step async for step in words]


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _model(fields: Mapping[str, Any]) -> str:
    """What answers: the adapter's version, or the base as it was asked for."""
    context = REQUEST.get()
    return context.label if context and context.label else str(fields.get("model"))


def _said(messages: list[dict[str, Any]]) -> str:
    return "\n".join(str(message.get("content")) for message in messages)


def _count(text: str) -> int:
    return len(text.split())


def _packed(row: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode()


def _refusal(message: str, param: str | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "type": "BadRequestError", "param": param, "code": 400}}, 400)
