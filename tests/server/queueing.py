"""A queue in a time of the test's own, and the requests that are made of it."""

import asyncio
import heapq
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from server.errors import OverloadedError
from server.shares import Asker, Turn
from server.turns import Turns

PATIENCE_SECONDS = 60.0


@dataclass
class Scene:
    """A queue whose time goes on when it is told to."""

    now: float = 0
    turns: Turns = field(init=False)
    begun: list[str] = field(default_factory=list)
    """Names of requests, in the order of their turns."""
    waited: dict[str, float] = field(default_factory=dict)
    """How long each of those did."""
    refused: dict[str, OverloadedError] = field(default_factory=dict)
    running: dict[str, Turn] = field(default_factory=dict)
    used: Counter[str] = field(default_factory=Counter)
    """Weighted tokens by tenant."""
    most_sequences: int = 0
    ends: dict[str, asyncio.Event] = field(default_factory=dict)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _due: list[tuple[float, str]] = field(default_factory=list)

    def open(
        self,
        *,
        capacity: int = 2,
        slots: int = 1,
        max_queued: int = 1000,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> "Scene":
        self.turns = Turns(
            capacity=capacity,
            slots=slots,
            max_queued=max_queued,
            patience_seconds=patience_seconds,
            clock=lambda: self.now,
        )
        return self

    async def ask(
        self, name: str, asker: Asker, *, tokens: int = 0, seconds: float | None = None, again: bool = False
    ) -> None:
        """A request comes. Its turn lasts so long, or until `end(name)`; then another like it comes, or none."""
        self._start(name, asker, tokens, seconds, again=again)
        await settle()

    def _start(self, name: str, asker: Asker, tokens: int, seconds: float | None, *, again: bool) -> None:
        self.ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._run(name, asker, tokens, seconds, again=again))

    async def _run(self, name: str, asker: Asker, tokens: int, seconds: float | None, *, again: bool) -> None:
        try:
            async with self.turns.turn(asker) as turn:
                self.begun.append(name)
                self.waited[name] = turn.waited_seconds
                self.running[name] = turn
                self.most_sequences = max(self.most_sequences, self.turns.sequences)
                if seconds is not None:
                    heapq.heappush(self._due, (self.now + seconds, name))
                if again:
                    self._start(f"{name}'", asker, tokens, seconds, again=True)
                try:
                    await self.ends[name].wait()
                finally:
                    del self.running[name]
                turn.use(0, tokens)
                self.used[asker.tenant] += 2 * tokens
        except OverloadedError as error:
            self.refused[name] = error

    async def end(self, *names: str) -> None:
        """Their turns end."""
        for name in names:
            self.ends[name].set()
            await self.tasks[name]
            await settle()

    async def hang_up(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)
        await settle()

    async def pass_seconds(self, seconds: float) -> None:
        """Time goes on; what has a length ends on its way."""
        until = self.now + seconds
        while self._due and self._due[0][0] <= until:
            self.now, name = heapq.heappop(self._due)
            if not self.tasks[name].done():
                await self.end(name)
        self.now = until

    async def close(self) -> None:
        """Everybody hangs up."""
        while live := [task for task in self.tasks.values() if not task.done()]:
            for task in live:
                task.cancel()
            await asyncio.gather(*live, return_exceptions=True)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left of anybody."""
        turns = self.turns
        return (turns.queued, turns.sequences, len(turns._shares), len(turns._slots.held), len(turns._probes)) == (
            (0,) * 5
        ) and not (turns._slots._wanted or turns._slots.starved() or turns._slots._without)


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(6):
        await asyncio.sleep(0)


def run(story: Callable[[Scene], Awaitable[None]], **options: float) -> Scene:
    """Tell a story; at its end everybody hangs up, and nothing may be left."""
    scene = Scene()

    async def told() -> None:
        scene.open(**options)  # type: ignore[arg-type]
        await story(scene)
        await scene.close()

    asyncio.run(told())
    assert scene.is_empty
    return scene
