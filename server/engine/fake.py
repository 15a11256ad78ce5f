"""An engine without a model, honest about all the rest: for the product's own tests.

It reads an adapter's files and refuses bad ones; it answers in words that follow from the prompt and the adapter's
weights, each word marked with whose it is; it stops when the client hangs up; and it dies, as vLLM does, when a running
request finds that its adapter was unloaded, or when more adapters are loaded than there is room for.

Tests stage things with `gate` (generation waits while it is clear), `kill()`, `stall()`, `refuses_loads`,
`samples_nan` and `start_failure`; and look at `running` and `loaded`.
"""

import asyncio
import itertools
import json
import math
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from hashlib import sha256
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from server.engine.fake_weights import read_digest
from server.engine.protocol import (
    REQUEST,
    AdapterRejectedError,
    EngineDeadError,
    EngineError,
    EngineInfo,
    Health,
    LoadedAdapter,
    RequestContext,
    Sample,
    Usage,
)

BASE_MARK = "base"
DEFAULT_MAX_TOKENS = 8
VOCABULARY_SIZE = 1000
Words = AsyncGenerator[tuple[str, ...], None]
"""The steps of one generation: a word for each choice."""


class FakeEngine:
    """One base, up to `host_slots` adapters."""

    def __init__(
        self,
        base_name: str = "base",
        *,
        max_rank: int = 16,
        slots: int = 2,
        host_slots: int = 8,
        max_model_len: int = 2048,
    ) -> None:
        self.info = EngineInfo(base_name, max_model_len, max_rank, slots, host_slots)
        self.asgi: ASGIApp = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/responses", self._responses, methods=["POST"]),
            ]
        )
        self.gate = asyncio.Event()
        self.gate.set()
        self.running: Counter[str] = Counter()
        """Generations in hand, by the adapter's name (or BASE_MARK)."""
        self.loaded: dict[int, LoadedAdapter] = {}
        self.loads: list[str] = []
        """The names of all loads that succeeded, in order."""
        self.seen_bodies: list[dict[str, Any]] = []
        self.seen_headers: list[dict[str, str]] = []
        self.refuses_loads = False
        self.samples_nan = False
        """Whether an adapter's log-probabilities are no numbers."""
        self.start_failure: EngineError | None = None
        self._marks: dict[int, str] = {}
        self._ids = itertools.count(1)
        self._health = Health.STARTING

    async def start(self) -> None:
        """Become ready, or raise `start_failure`."""
        if self.start_failure is not None:
            raise self.start_failure
        self._health = Health.READY

    async def stop(self) -> None:
        """Forget everything."""
        self._health = Health.STARTING
        self.loaded.clear()

    def kill(self) -> None:
        """Die, with all that runs."""
        self._health = Health.DEAD

    def stall(self) -> None:
        """Make no step any more."""
        self._health = Health.STALLED

    def health(self) -> Health:
        """STARTING until `start`, DEAD after `kill` or a broken promise."""
        return self._health

    async def load(self, name: str, path: Path) -> LoadedAdapter:
        """Read the files; the weights decide the words."""
        self._check_alive()
        if self.refuses_loads:
            raise AdapterRejectedError("no memory left, at /some/path")
        int_id = next(self._ids)
        digest = await asyncio.to_thread(read_digest, path, self.info.max_rank)
        if len(self.loaded) >= self.info.host_slots:
            self.kill()  # vLLM would evict one by itself, and read it from disk inside a later step
            raise EngineDeadError("more adapters than host slots")
        adapter = self.loaded[int_id] = LoadedAdapter(name, int_id, path)
        self._marks[int_id] = digest or BASE_MARK
        self.loads.append(name)
        return adapter

    async def unload(self, adapter: LoadedAdapter) -> None:
        """Forget the adapter. A request that still runs with it will find out, and the engine dies of it."""
        await asyncio.sleep(0)
        self.loaded.pop(adapter.int_id, None)

    async def sample(self, prompt: str, adapter: LoadedAdapter | None, *, max_tokens: int) -> Sample:
        """As many token ids as asked for, each with a made-up probability."""
        token = REQUEST.set(RequestContext(adapter))
        try:
            async with aclosing(self._generate(prompt, n=1, max_tokens=max_tokens)) as words:
                ids = [int(word.rpartition("-")[2]) async for (word,) in words]
        finally:
            REQUEST.reset(token)
        if self.samples_nan and adapter is not None:
            return Sample(tuple(ids), (math.nan,) * len(ids))
        return Sample(tuple(ids), tuple(math.log((1 + token_id) / (1 + VOCABULARY_SIZE)) for token_id in ids))

    def mark(self, adapter: LoadedAdapter | None) -> str:
        """What each of this adapter's words begins with."""
        if adapter is None:
            return BASE_MARK
        if adapter.int_id not in self.loaded:
            self.kill()
            raise EngineDeadError("a request's adapter is not loaded")
        return self._marks[adapter.int_id]

    async def _generate(self, prompt: str, *, n: int, max_tokens: int) -> Words:
        """One step at a time: a word for each of the `n` choices."""
        context = REQUEST.get() or RequestContext(None)
        name = context.adapter.name if context.adapter else BASE_MARK
        call_id = f"call-{next(self._ids)}"
        self.running[name] += 1
        try:
            for step in range(max_tokens):
                await self.gate.wait()
                await asyncio.sleep(0)
                self._check_alive()
                mark = self.mark(context.adapter)
                context.on_usage(call_id, Usage(len(prompt.split()), n * (step + 1)))
                yield tuple(f"{mark}-{_token_id(mark, prompt, choice, step)}" for choice in range(n))
        finally:
            self.running[name] -= 1

    def _check_alive(self) -> None:
        if self._health is not Health.READY:
            raise EngineDeadError("the engine is dead")

    # --- the app

    async def _chat(self, request: Request) -> Response:
        fields = await self._read(request)
        messages = fields.get("messages")
        if not isinstance(messages, list) or not messages:
            return _refusal("messages must be a list of messages")
        prompt = "\n".join(str(message.get("content")) for message in messages)
        return await self._answer(request, fields, prompt, is_chat=True)

    async def _completions(self, request: Request) -> Response:
        fields = await self._read(request)
        return await self._answer(request, fields, str(fields.get("prompt", "")), is_chat=False)

    async def _responses(self, request: Request) -> Response:
        fields = await self._read(request)
        return await self._answer(request, fields, str(fields.get("input", "")), is_chat=False)

    async def _read(self, request: Request) -> dict[str, Any]:
        fields: dict[str, Any] = await request.json()
        self.seen_bodies.append(fields)
        self.seen_headers.append(dict(request.headers))
        return fields

    async def _answer(self, request: Request, fields: dict[str, Any], prompt: str, *, is_chat: bool) -> Response:
        max_tokens = fields.get("max_tokens") or DEFAULT_MAX_TOKENS
        if max_tokens + len(prompt.split()) > self.info.max_model_len:
            return _refusal(f"This model's maximum context length is {self.info.max_model_len} tokens (/opt/model/x)")
        words = self._generate(prompt, n=fields.get("n") or 1, max_tokens=max_tokens)
        page = _Page(fields["model"], is_chat=is_chat, prompt_tokens=len(prompt.split()))
        if fields.get("stream"):
            include_usage = bool((fields.get("stream_options") or {}).get("include_usage"))
            return StreamingResponse(_events(words, page, include_usage=include_usage), media_type="text/event-stream")
        return await _unless_gone(request, words, page)


class _Page:
    """The JSON of OpenAI's answers."""

    def __init__(self, model: str, *, is_chat: bool, prompt_tokens: int) -> None:
        self._model = model
        self._is_chat = is_chat
        self._prompt_tokens = prompt_tokens

    def whole(self, texts: list[str], completion_tokens: int) -> dict[str, Any]:
        choices = [
            {"index": index, "finish_reason": "length", "logprobs": None}
            | ({"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text})
            for index, text in enumerate(texts)
        ]
        return self._frame("", choices) | {"usage": self.usage(completion_tokens)}

    def chunk(self, words: tuple[str, ...]) -> dict[str, Any]:
        choices = [
            {"index": index, "finish_reason": None, "logprobs": None}
            | ({"delta": {"content": f"{word} "}} if self._is_chat else {"text": f"{word} "})
            for index, word in enumerate(words)
        ]
        return self._frame(".chunk" if self._is_chat else "", choices)

    def last_chunk(self, completion_tokens: int) -> dict[str, Any]:
        return self._frame(".chunk" if self._is_chat else "", []) | {"usage": self.usage(completion_tokens)}

    def usage(self, completion_tokens: int) -> dict[str, int]:
        prompt = self._prompt_tokens
        total = prompt + completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion_tokens, "total_tokens": total}

    def _frame(self, suffix: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion" if self._is_chat else "text_completion"
        return {"id": "fake", "object": kind + suffix, "created": 0, "model": self._model, "choices": choices}


async def _events(words: Words, page: _Page, *, include_usage: bool) -> AsyncIterator[str]:
    tokens = 0
    async with aclosing(words):
        try:
            async for step in words:
                tokens += len(step)
                yield f"data: {json.dumps(page.chunk(step))}\n\n"
        except EngineDeadError as error:
            yield f"data: {json.dumps(_failure(error))}\n\n"
    if include_usage:
        yield f"data: {json.dumps(page.last_chunk(tokens))}\n\n"
    yield "data: [DONE]\n\n"


async def _unless_gone(request: Request, words: Words, page: _Page) -> Response:
    """The whole answer; generation stops when the client hangs up, as under vLLM's `with_cancellation`."""
    generating = asyncio.create_task(_gather(words))
    leaving = asyncio.create_task(_hang_up(request))
    await asyncio.wait({generating, leaving}, return_when=asyncio.FIRST_COMPLETED)
    unfinished = [task for task in (generating, leaving) if not task.done()]
    for task in unfinished:
        task.cancel()
    await asyncio.gather(*unfinished, return_exceptions=True)
    if generating.cancelled():
        return JSONResponse(None)
    try:
        steps = generating.result()
    except EngineDeadError as error:
        return JSONResponse(_failure(error), 500)
    texts = [" ".join(choice) for choice in zip(*steps, strict=True)]
    return JSONResponse(page.whole(texts, sum(map(len, steps))))


async def _gather(words: Words) -> list[tuple[str, ...]]:
    return [step async for step in words]


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refusal(message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}, 400)


def _failure(error: EngineDeadError) -> dict[str, Any]:
    return {"error": {"message": str(error), "type": "InternalServerError", "code": 500}}


def _token_id(*parts: object) -> int:
    return int.from_bytes(sha256(repr(parts).encode()).digest()[:4]) % VOCABULARY_SIZE
