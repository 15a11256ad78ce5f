"""Clients: streamed chats, all at once or as they come, and what became of each."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from statistics import quantiles
from typing import Any, Final, Self

import aiohttp

from server.bench.fake_server import FIGURES_PATH, Served

GIVE_UP_SECONDS: Final = 300


@dataclass(slots=True)
class Heard:
    """One request, as its client saw it."""

    tenant: str
    began: float
    status: int = 0
    first_seconds: float = 0
    seconds: float = 0
    tokens: int = 0
    has_retry_after: bool = False

    @property
    def is_answered(self) -> bool:
        """Whether it got its answer."""
        return self.status == HTTPStatus.OK


class Clients:
    """Of one server. Use as `async with`."""

    def __init__(self, served: Served) -> None:
        self._served = served

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(GIVE_UP_SECONDS), read_bufsize=1 << 14
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def figures(self) -> dict[str, Any]:
        """What the server says of itself since this was asked last."""
        async with self._session.get(self._served.url + FIGURES_PATH) as response:
            figures: dict[str, Any] = await response.json()
            return figures

    async def ask(self, tenant: str, *, max_tokens: int) -> Heard:
        """One streamed chat with the tenant's own adapter."""
        heard = Heard(tenant, time.monotonic())
        body = {
            "adapter": "own",
            "messages": [{"role": "user", "content": "tell me a story about a fox"}],
            "max_tokens": max_tokens,
            "stream": True,
        }
        headers = {"authorization": f"Bearer {self._served.keys[tenant]}"}
        async with self._session.post(
            f"{self._served.url}/v1/chat/completions", json=body, headers=headers
        ) as response:
            heard.status = response.status
            heard.has_retry_after = "retry-after" in response.headers
            async for piece in response.content.iter_any():
                if not heard.tokens:
                    heard.first_seconds = time.monotonic() - heard.began
                heard.tokens += piece.count(b"data: {")
        heard.seconds = time.monotonic() - heard.began
        return heard

    async def ask_at_random(self, tenant: str, *, per_second: float, seconds: float, max_tokens: int) -> list[Heard]:
        """Requests that come as a Poisson process does, whatever becomes of those before."""
        chance = random.Random(tenant)  # noqa: S311  — the same in each run
        loop, asked = asyncio.get_running_loop(), []
        due, end = loop.time(), loop.time() + seconds
        while (due := due + chance.expovariate(per_second)) < end:
            await asyncio.sleep(max(0, due - loop.time()))
            asked.append(asyncio.create_task(self.ask(tenant, max_tokens=max_tokens)))
        return list(await asyncio.gather(*asked))

    async def keep_asking(self, tenant: str, *, at_once: int, seconds: float, max_tokens: int) -> list[Heard]:
        """So many at any time: who is refused asks again after a while."""
        end = asyncio.get_running_loop().time() + seconds
        answers = await asyncio.gather(*(self._keep(tenant, end, max_tokens) for _ in range(at_once)))
        return [heard for each in answers for heard in each]

    async def _keep(self, tenant: str, end: float, max_tokens: int) -> list[Heard]:
        heard = []
        while asyncio.get_running_loop().time() < end:
            heard.append(await self.ask(tenant, max_tokens=max_tokens))
            if not heard[-1].is_answered:
                await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311
        return heard


def percentile(values: Sequence[float], percent: int) -> float:
    """Of so many percent of the values none is larger."""
    few = 2
    return quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) >= few else sum(values)
