"""What goes on beside the asking: promotes, uploads, bad uploads, and engines that are killed."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from tests.canary.stages import NAMES, TENANTS, VERSIONS, Stage
from tests.canary.visitors import Visitors


class Disturbances:
    """Each goes on, at its own pace, until the visitors' work is over."""

    def __init__(self, stage: Stage, visitors: Visitors, uploads: Path, seed: int) -> None:
        self._stage = stage
        self._visitors = visitors
        self._uploads = uploads
        self._random = random.Random(seed)
        self.done: Counter[str] = Counter()

    async def promote(self, every_seconds: float) -> None:
        """`live` goes to and fro."""
        await self._again_and_again(every_seconds, self._promote)

    async def upload(self, every_seconds: float) -> None:
        """An adapter of no interest to anybody; every other one is broken, and must be refused."""
        await self._again_and_again(every_seconds, self._upload)

    async def kill(self, every_answers: int) -> None:
        """The engine, whenever so many more right answers have come."""
        while not self._visitors.over.is_set():
            due = (self.done["kills"] + 1) * every_answers
            if self._visitors.tally.right >= due:
                await asyncio.to_thread(self._stage.kill_engine)
                self.done["kills"] += 1
            await asyncio.sleep(0.2)

    async def _again_and_again(self, every_seconds: float, act: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
        async with httpx.AsyncClient(timeout=120) as client:
            while not self._visitors.over.is_set():
                try:
                    await act(client)
                except httpx.TransportError:
                    self.done["cut"] += 1
                await asyncio.sleep(every_seconds)

    async def _promote(self, client: httpx.AsyncClient) -> None:
        tenant, name = self._random.choice(TENANTS), self._random.choice(NAMES)
        path = f"/admin/v1/tenants/{tenant}/adapters/{name}/aliases/live"
        body = {"version": self._random.choice(VERSIONS)}
        answer = await client.put(f"{self._stage.url}{path}", json=body, headers=self._key(tenant))
        self.done[f"promotes {answer.status_code}"] += 1

    async def _upload(self, client: httpx.AsyncClient) -> None:
        tenant, is_bad = self._random.choice(TENANTS), self._random.random() < 0.5
        config, weights = ((self._uploads / name).read_bytes() for name in ("config", "bad" if is_bad else "good"))
        files = [
            ("files", ("adapter_config.json", config)),
            ("files", ("adapter_model.safetensors", weights)),
        ]
        path = f"/admin/v1/tenants/{tenant}/adapters/upload-{self._random.randrange(4)}/versions"
        answer = await client.post(f"{self._stage.url}{path}", files=files, headers=self._key(tenant))
        self.done[f"{'bad' if is_bad else 'good'} uploads {answer.status_code}"] += 1

    def _key(self, tenant: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self._stage.keys[tenant]}"}
