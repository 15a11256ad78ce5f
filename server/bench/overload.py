"""Ten times what the engine can answer: how much of its peak it still answers, and how those fare that are refused."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from adapters import TenantLimits
from server.bench.fake_server import Staged, serving
from server.bench.load import Clients, Heard, percentile

TENANTS: Final = tuple(f"tenant-{number}" for number in range(8))
MAX_NUM_SEQS: Final = 16
TOKENS_PER_SECOND: Final = 96.0
MAX_TOKENS: Final = 12
SECONDS: Final = 10
PEAK_PER_SECOND: Final = TOKENS_PER_SECOND / MAX_TOKENS


def run(say: Callable[[str], None]) -> dict[str, Any]:
    """Goodput at the peak and beyond, as a ratio; the refused ones' latency, and whether each was told when to come."""
    staged = Staged(TOKENS_PER_SECOND, MAX_NUM_SEQS, dict.fromkeys(TENANTS, TenantLimits()))
    with serving(staged) as served:
        return asyncio.run(_measure(Clients(served), say))


async def _measure(clients: Clients, say: Callable[[str], None]) -> dict[str, Any]:
    async with clients:
        for tenant in TENANTS:
            await clients.ask(tenant, max_tokens=1)
        say("the peak: just enough at once")
        peak = await _everybody(clients, at_once=MAX_NUM_SEQS // len(TENANTS) + 1)
        say("ten times as much")
        asked = [
            clients.ask_at_random(
                tenant, per_second=10 * PEAK_PER_SECOND / len(TENANTS), seconds=SECONDS, max_tokens=MAX_TOKENS
            )
            for tenant in TENANTS
        ]
        began = asyncio.get_running_loop().time()
        heard = [one for answers in await asyncio.gather(*asked) for one in answers]
        seconds = asyncio.get_running_loop().time() - began
    refused = [one for one in heard if not one.is_answered]
    at_once = [one.seconds for one in refused]
    goodput = sum(one.tokens for one in heard if one.is_answered) / seconds
    return {
        "peak_tokens_per_second": peak,
        "goodput_tokens_per_second": goodput,
        "requests": len(heard),
        "refused": len(refused),
        "refused_p50_ms": 1000 * percentile(at_once, 50),
        "refused_p99_ms": 1000 * percentile(at_once, 99),
        "with_retry_after": sum(one.has_retry_after for one in refused),
        "statuses": {
            str(status): sum(one.status == status for one in heard) for status in {one.status for one in heard}
        },
        "ratios": {"goodput_vs_peak": goodput / peak},
    }


async def _everybody(clients: Clients, *, at_once: int) -> float:
    began = asyncio.get_running_loop().time()
    asked = (clients.keep_asking(tenant, at_once=at_once, seconds=SECONDS, max_tokens=MAX_TOKENS) for tenant in TENANTS)
    heard: list[Heard] = [one for answers in await asyncio.gather(*asked) for one in answers]
    return sum(one.tokens for one in heard) / (asyncio.get_running_loop().time() - began)
