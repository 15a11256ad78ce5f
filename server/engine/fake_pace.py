"""How fast the fake engine speaks: like a GPU's, a step takes as long for one sequence as for a full batch.

At most `max_num_seqs` sequences run, and together make `tokens_per_second` when they are so many. What comes beyond
that waits, first come, first served. Each sequence has times of its own: a batch of a thousand in lock step would
measure how long a thousand answers take to write.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar

DUE: ContextVar[float] = ContextVar("lorikeet_fake_due")
"""When the last token of the request at hand was due, in the loop's time."""


class Pace:
    """One engine's."""

    def __init__(self, *, tokens_per_second: float, max_num_seqs: int) -> None:
        self._step_seconds = max_num_seqs / tokens_per_second
        self._max_num_seqs = max_num_seqs
        self._running = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def running(self, sequences: int) -> AsyncIterator[None]:
        """Wait until so many more sequences may run; they do so for as long as the block lasts."""
        size = min(sequences, self._max_num_seqs)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, place))
        self._admit()
        try:
            await place
            DUE.set(asyncio.get_running_loop().time())
            yield
        finally:
            if place.done() and not place.cancelled():
                self._running -= size
            else:
                with suppress(ValueError):  # it was cancelled, and passed over since
                    self._waiting.remove((size, place))
            self._admit()

    async def step(self) -> None:
        """Wait for the next token's time."""
        due = DUE.get() + self._step_seconds
        DUE.set(due)
        await asyncio.sleep(max(0, due - asyncio.get_running_loop().time()))

    def _admit(self) -> None:
        while self._waiting and self._running + self._waiting[0][0] <= self._max_num_seqs:
            size, place = self._waiting.popleft()
            if place.cancelled():
                continue
            self._running += size
            place.set_result(None)
