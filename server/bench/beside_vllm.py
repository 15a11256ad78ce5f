"""The real engine through us, beside vLLM's own server: the same base, flags, adapters and kernels, turn about.

Both servers stand at once, each on an engine of its own, and are asked one after the other, so that a noisy machine
is noisy for both. Both run on our CPU kernels (server/engine/plugin.py): vLLM's own answer wrong, and slower.
"""

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import aiohttp

from adapters import Base, Caller, RegistrySettings, Scope, folder_members, open_registry
from server.bench.random_adapter import write_random_adapter
from server.engine.environment import environment_with, prepare_environment
from server.running import build_engine
from server.settings import ServerSettings

ADAPTERS: Final = ("one", "two")
RANK: Final = 16
AT_ONCE: Final = 16
REQUESTS: Final = 48
MAX_TOKENS: Final = 48
TURNS: Final = 5
START_SECONDS: Final = 300
OPERATOR: Final = Caller.operator()


@dataclass(frozen=True)
class _Side:
    """A server, and how it is asked."""

    url: str
    headers: Mapping[str, str]
    process: "subprocess.Popen[bytes]"


@dataclass(frozen=True)
class _Heard:
    """Of one turn."""

    tokens_per_second: float
    first_token_seconds: float
    """At the median."""


def run(say: Callable[[str], None]) -> dict[str, Any]:
    """Throughput and time to first token on both sides, and the ratios of their medians; of all turns, what was seen.

    Of chats that each name the base or one of two adapters, streamed, AT_ONCE at a time.
    """
    settings = ServerSettings()
    with RegistrySettings().open() as registry:
        base = registry.bases.find(OPERATOR, settings.base)
        max_rank = settings.rank_step(registry.limits.max_rank)
    prepare_environment()
    with tempfile.TemporaryDirectory(prefix="lorikeet-bench-") as temporary:
        folder = Path(temporary)
        adapters = {
            name: write_random_adapter(folder / name, base, rank=RANK, seed=seed) for seed, name in enumerate(ADAPTERS)
        }
        key = _make_home(folder / "home", base, adapters)
        say("starting both servers")
        flags = build_engine(settings, base, max_rank).flags  # ours come to the same
        with _ours(folder, settings, key) as ours, _vllms(folder, flags, adapters) as vllms:
            return asyncio.run(_compare(ours, vllms, [base.name, *ADAPTERS], say))


async def _compare(ours: _Side, vllms: _Side, models: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
    heard: dict[str, list[_Heard]] = {"ours": [], "vllm": []}
    sides = {"ours": ours, "vllm": vllms}
    for side in sides.values():
        await _until_up(side)
        await _ask_all(side, models, AT_ONCE)  # warm
    for turn in range(TURNS):
        for name in ("ours", "vllm") if turn % 2 == 0 else ("vllm", "ours"):
            heard[name].append(await _ask_all(sides[name], models, REQUESTS))
            say(f"turn {turn + 1} of {TURNS}, {name}: {heard[name][-1].tokens_per_second:.1f} tokens/s")
    speed = {name: median(one.tokens_per_second for one in turns) for name, turns in heard.items()}
    first = {name: median(one.first_token_seconds for one in turns) for name, turns in heard.items()}
    return {
        "ratios": {
            "throughput_vs_vllm": round(speed["ours"] / speed["vllm"], 4),
            "first_token_vs_vllm": round(first["ours"] / first["vllm"], 4),
        },
        "tokens_per_second": speed,
        "first_token_seconds": first,
        "turns": {name: [one.tokens_per_second for one in turns] for name, turns in heard.items()},
    }


async def _ask_all(side: _Side, models: Sequence[str], requests: int) -> _Heard:
    limit = asyncio.Semaphore(AT_ONCE)
    began = time.monotonic()
    async with aiohttp.ClientSession(headers=side.headers, timeout=aiohttp.ClientTimeout(600)) as session:
        asked = (_ask(session, limit, side.url, models[number % len(models)], number) for number in range(requests))
        answers = await asyncio.gather(*asked)
    seconds = time.monotonic() - began
    return _Heard(sum(tokens for tokens, _ in answers) / seconds, median(first for _, first in answers))


async def _ask(
    session: aiohttp.ClientSession, limit: asyncio.Semaphore, url: str, model: str, number: int
) -> tuple[int, float]:
    """The answer's tokens, and the seconds to its first."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Tell me story number {number} about a fox."}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    first, tokens = 0.0, 0
    async with limit:
        began = time.monotonic()
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line.removeprefix(b"data: "))
                if not first and any(choice["delta"].get("content") for choice in chunk["choices"]):
                    first = time.monotonic() - began
                if chunk.get("usage"):
                    tokens = chunk["usage"]["completion_tokens"]
    return tokens, first


# --- the two servers --------------------------------------------------------------------------------------------------


@contextmanager
def _ours(folder: Path, settings: ServerSettings, key: str) -> Iterator[_Side]:
    port = _free_port()
    serve = ["serve", "--no-supervise", "--base", settings.base, "--port", str(port)]
    command = [sys.executable, "-m", "lorikeet", *serve]
    with _process(command, folder / "ours.log", {"LORIKEET_HOME": str(folder / "home")}) as process:
        yield _Side(f"http://127.0.0.1:{port}", {"authorization": f"Bearer {key}"}, process)


@contextmanager
def _vllms(folder: Path, flags: Sequence[str], adapters: Mapping[str, Path]) -> Iterator[_Side]:
    port = _free_port()
    modules = [f"{name}={path}" for name, path in adapters.items()]
    where = ["--host", "127.0.0.1", "--port", str(port), "--lora-modules", *modules]
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", *flags, *where]
    with _process(command, folder / "vllm.log", {}) as process:
        yield _Side(f"http://127.0.0.1:{port}", {}, process)


@contextmanager
def _process(command: Sequence[str], log: Path, variables: Mapping[str, str]) -> "Iterator[subprocess.Popen[bytes]]":
    with log.open("wb") as output:
        environment = environment_with(variables)
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)  # noqa: S603  — our own
        try:
            yield process
        except BaseException:
            sys.stderr.write(log.read_text()[-4000:])
            raise
        finally:
            process.terminate()
            process.wait(60)


async def _until_up(side: _Side) -> None:
    """Raises TimeoutError, ChildProcessError: it does not come up."""
    async with asyncio.timeout(START_SECONDS), aiohttp.ClientSession(headers=side.headers) as session:
        while True:
            if side.process.poll() is not None:
                raise ChildProcessError("a server ended before it was up")
            try:
                async with session.get(f"{side.url}/v1/models") as response:
                    if response.ok:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(1)


def _make_home(home: Path, base: Base, adapters: Mapping[str, Path]) -> str:
    """A registry with the base and the adapters, and the key of the tenant that they are of."""
    with open_registry(home) as registry:
        registry.bases.add(OPERATOR, base)
        registry.tenants.create(OPERATOR, "bench")
        for name, folder in adapters.items():
            registry.versions.publish(OPERATOR, "bench", name, folder_members(folder), base=base.fingerprint)
            registry.aliases.promote(OPERATOR, "bench", name, 1)
        return registry.keys.issue(OPERATOR, "bench", name="bench", scopes=frozenset({Scope.INFER})).secret


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
