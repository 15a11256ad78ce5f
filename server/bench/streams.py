"""A thousand streams in flight: what the server adds to each token, and what a token and a request cost it.

At half load: the pace is what takes about half of one core. Then as fast as it gets, for the server's own peak.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from adapters import TenantLimits
from server.bench.fake_server import Staged, serving
from server.bench.load import Clients, percentile

STREAMS: Final = 1000
TOKENS_PER_SECOND: Final = 2500.0
WARM_SECONDS: Final = 10
SECONDS: Final = 10
MAX_TOKENS: Final = 1900
TENANTS: Final = tuple(f"tenant-{number}" for number in range(10))
REQUESTS: Final = 200
"""One token each: what a request costs beside its tokens."""


def run(say: Callable[[str], None]) -> dict[str, Any]:
    """Added latency in milliseconds, CPU time in microseconds."""
    staged = Staged(TOKENS_PER_SECOND, STREAMS, dict.fromkeys(TENANTS, TenantLimits()))
    with serving(staged) as served:
        return asyncio.run(_measure(Clients(served), say))


async def _measure(clients: Clients, say: Callable[[str], None]) -> dict[str, Any]:
    async with clients:
        for tenant in TENANTS:
            await clients.ask(tenant, max_tokens=1)
        say("short requests")
        per_request = await _cost_of_requests(clients)
        say(f"{STREAMS} streams begin")
        asked = []
        for number in range(STREAMS):
            asked.append(asyncio.create_task(clients.ask(TENANTS[number % len(TENANTS)], max_tokens=MAX_TOKENS)))
            await asyncio.sleep(WARM_SECONDS / 2 / STREAMS)
        await asyncio.sleep(WARM_SECONDS / 2)
        await clients.figures()
        say(f"{STREAMS} streams in flight")
        await asyncio.sleep(SECONDS)
        figures = await clients.figures()
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    return {
        "streams": STREAMS,
        "tokens_per_second": figures["tokens"] / figures["seconds"],
        "cpu_share_of_a_core": figures["cpu_seconds"] / figures["seconds"],
        "added_p50_ms": percentile(figures["added_ms"], 50),
        "added_p99_ms": percentile(figures["added_ms"], 99),
        "cpu_us_per_token": 1e6 * figures["cpu_seconds"] / figures["tokens"],
        "cpu_us_per_request": 1e6 * per_request,
    }


async def _cost_of_requests(clients: Clients) -> float:
    await clients.figures()
    at_once = 40
    for _ in range(REQUESTS // at_once):
        await asyncio.gather(*(clients.ask(TENANTS[number % len(TENANTS)], max_tokens=1) for number in range(at_once)))
    figures = await clients.figures()
    cpu_seconds: float = figures["cpu_seconds"] / figures["requests"]
    return cpu_seconds
