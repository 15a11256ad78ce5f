"""An engine without a model, honest about all the rest: for the product's own tests.

It reads an adapter's files and refuses bad ones; it answers in words that follow from the prompt and the adapter's
weights, each word marked with whose it is; it stops when the client hangs up; and it dies, as vLLM does, when a running
request finds that its adapter was unloaded, or when more adapters are loaded than there is room for.

Tests stage things with `gate` (generation waits while it is clear: a long step), `kill()`, `stall()`, `halt()`,
`refuses_loads`, `samples_nan` and `start_failure`; and look at `running` and `loaded`.
"""

import asyncio
import itertools
import math
import time
from collections import Counter
from contextlib import aclosing, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from server.engine import fake_schema
from server.engine.fake_app import FakeApp, Words
from server.engine.fake_pace import Pace
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
    Vitals,
)

BASE_MARK = "base"
VOCABULARY_SIZE = 1000
EMBEDDING_SIZE = 4


class FakeEngine:
    """One base, up to `host_slots` adapters; as fast as it gets, or at the pace of `tokens_per_second`."""

    def __init__(
        self,
        base_name: str = "base",
        *,
        max_rank: int = 16,
        slots: int = 2,
        host_slots: int = 8,
        max_model_len: int = 2048,
        tokens_per_second: float | None = None,
        max_num_seqs: int = 16,
    ) -> None:
        self.info = EngineInfo(base_name, max_model_len, max_rank, slots, host_slots)
        app = FakeApp(self, max_model_len=max_model_len)
        self.asgi: ASGIApp = app.asgi
        self.seen_bodies, self.seen_headers = app.seen_bodies, app.seen_headers
        self.gate = asyncio.Event()
        self.gate.set()
        self.running: Counter[str] = Counter()
        """Generations in hand, by the adapter's name (or BASE_MARK)."""
        self.loaded: dict[int, LoadedAdapter] = {}
        self.loads: list[str] = []
        """The names of all loads that succeeded, in order."""
        self.refuses_loads = False
        self.samples_nan = False
        """Whether an adapter's log-probabilities are no numbers."""
        self.start_failure: EngineError | None = None
        self._pace = Pace(tokens_per_second=tokens_per_second, max_num_seqs=max_num_seqs) if tokens_per_second else None
        self._marks: dict[int, str] = {}
        self._ids = itertools.count(1)
        self._health = Health.STARTING
        self._moves = asyncio.Event()
        self._moves.set()
        self._is_halted = False
        self._wanted_steps = 0
        self._stepped_at = self._cpu_seconds = 0.0

    async def start(self) -> None:
        """Become ready, or raise `start_failure`."""
        if self.start_failure is not None:
            raise self.start_failure
        self._health = Health.READY

    async def stop(self) -> None:
        """Forget everything."""
        self._health = Health.STARTING
        self._moves.set()
        self.loaded.clear()

    def kill(self) -> None:
        """Die, with all that runs."""
        self._health = Health.DEAD

    def stall(self) -> None:
        """Make no step any more, and compute nothing: its processes wait for each other."""
        self._moves.clear()

    def halt(self) -> None:
        """Make no step any more: a process of it is stopped."""
        self._is_halted = True
        self.stall()

    def vitals(self) -> Vitals:
        """It computes all the time, unless it is stalled."""
        if self._moves.is_set():
            self._cpu_seconds = time.monotonic()
        return Vitals(self._wanted_steps > 0, self._stepped_at, self._cpu_seconds, self._is_halted)

    def health(self) -> Health:
        """STARTING until `start`, DEAD after `kill` or a broken promise."""
        return self._health

    async def load(self, name: str, path: Path) -> LoadedAdapter:
        """Read the files; the weights decide the words."""
        self._check_alive()
        await self._moves.wait()
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
            async with aclosing(self.generate(prompt, n=1, max_tokens=max_tokens)) as words:
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

    async def generate(self, prompt: str, *, n: int, max_tokens: int) -> Words:
        """One step at a time: a word for each of the `n` choices."""
        context = REQUEST.get() or RequestContext(None)
        name = context.adapter.name if context.adapter else BASE_MARK
        call_id = f"call-{next(self._ids)}"
        self.running[name] += 1
        try:
            async with self._pace.running(n) if self._pace else nullcontext():
                for step in range(max_tokens):
                    await self._make_step()
                    mark = self.mark(context.adapter)
                    context.on_usage(call_id, Usage(len(prompt.split()), n * (step + 1)))
                    yield tuple(f"{mark}-{_token_id(mark, prompt, choice, step)}" for choice in range(n))
        finally:
            self.running[name] -= 1

    async def _make_step(self) -> None:
        self._wanted_steps += 1  # and none is while the last word waits for its reader
        try:
            await self.gate.wait()
            await self._moves.wait()
            await (self._pace.step() if self._pace else asyncio.sleep(0))
        finally:
            self._wanted_steps -= 1
        self._check_alive()
        self._stepped_at = time.monotonic()

    def embed(self, text: str) -> tuple[float, ...]:
        """Made-up numbers, the same for the same text and adapter."""
        context = REQUEST.get() or RequestContext(None)
        self._check_alive()
        mark = self.mark(context.adapter)
        context.on_usage(f"call-{next(self._ids)}", Usage(len(text.split()), 0))
        return tuple(_token_id(mark, text, place) / VOCABULARY_SIZE for place in range(EMBEDDING_SIZE))

    def openapi(self) -> dict[str, Any]:
        """What the routes of `asgi` take."""
        return fake_schema.openapi()

    def _check_alive(self) -> None:
        if self._health is not Health.READY:
            raise EngineDeadError("the engine is dead")


def _token_id(*parts: object) -> int:
    return int.from_bytes(sha256(repr(parts).encode()).digest()[:4]) % VOCABULARY_SIZE
