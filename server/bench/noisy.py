"""A tenant that asks for twenty times its share, beside others that ask for half of theirs: what these lose by it.

Those arrive at random; the noisy one keeps as many in flight as makes twenty times its part of the places.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from adapters import TenantLimits
from server.bench.fake_server import Staged, serving
from server.bench.load import Clients, Heard, percentile

OTHERS: Final = tuple(f"quiet-{number}" for number in range(4))
NOISY: Final = "noisy"
MAX_NUM_SEQS: Final = 16
TOKENS_PER_SECOND: Final = 160.0
MAX_TOKENS: Final = 16
SECONDS: Final = 40
SHARE_PER_SECOND: Final = TOKENS_PER_SECOND / MAX_TOKENS / (len(OTHERS) + 1)
"""Requests that a tenant may have answered, when all ask for more."""


def run(say: Callable[[str], None]) -> dict[str, Any]:
    """The others' throughput and p95 time to first token: alone, beside the noisy one, and as ratios."""
    staged = Staged(TOKENS_PER_SECOND, MAX_NUM_SEQS, dict.fromkeys((*OTHERS, NOISY), TenantLimits()))
    with serving(staged) as served:
        return asyncio.run(_measure(Clients(served), say))


async def _measure(clients: Clients, say: Callable[[str], None]) -> dict[str, Any]:
    async with clients:
        for tenant in (*OTHERS, NOISY):
            await clients.ask(tenant, max_tokens=1)
        say("the others alone")
        alone = await _others(clients)
        say("beside a noisy one")
        noise = asyncio.create_task(_noise(clients))
        await asyncio.sleep(3)
        beside = await _others(clients)
        noisy = await noise
    found = {"alone": _figures(alone), "beside": _figures(beside), "noisy": _figures(noisy)}
    return {
        **found,
        "ratios": {
            name: found["beside"][name] / found["alone"][name] for name in ("tokens_per_second", "first_token_p95_ms")
        },
    }


async def _others(clients: Clients) -> list[Heard]:
    asked = [
        clients.ask_at_random(tenant, per_second=SHARE_PER_SECOND / 2, seconds=SECONDS, max_tokens=MAX_TOKENS)
        for tenant in OTHERS
    ]
    return [heard for answers in await asyncio.gather(*asked) for heard in answers]


async def _noise(clients: Clients) -> list[Heard]:
    return await clients.ask_at_random(
        NOISY, per_second=20 * SHARE_PER_SECOND, seconds=SECONDS + 3, max_tokens=MAX_TOKENS
    )


def _figures(heard: Sequence[Heard]) -> dict[str, Any]:
    answered = [one for one in heard if one.is_answered]
    return {
        "requests": len(heard),
        "refused": len(heard) - len(answered),
        "tokens_per_second": sum(one.tokens for one in answered) / SECONDS,
        "first_token_p50_ms": 1000 * percentile([one.first_seconds for one in answered], 50),
        "first_token_p95_ms": 1000 * percentile([one.first_seconds for one in answered], 95),
    }
