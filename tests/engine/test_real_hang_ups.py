"""Clients that leave, and what is counted, on the real engine."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from openai import OpenAI

from tests.engine.asking import GREEDY, chat, counted, leases
from tests.engine.conftest import RealServer

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_lease_and_stops_its_generation(server: RealServer, stream: bool) -> None:  # noqa: FBT001
    llm: Any = server.engine
    body = {**GREEDY, "adapter": "support", "max_tokens": 900, "ignore_eos": True, "stream": stream}

    with connected(server, body):
        wait_until(lambda: llm._llm.get_num_unfinished_requests() > 0 and leases(server)["acme/support@1"] == 1)

    wait_until(lambda: llm._llm.get_num_unfinished_requests() == 0 and not any(leases(server).values()))


def test_what_was_generated_before_a_client_hung_up_is_counted(server: RealServer) -> None:
    llm: Any = server.engine
    before = counted(server, "support", "1")
    body = {**GREEDY, "adapter": "support", "max_tokens": 900, "ignore_eos": True}

    with connected(server, body):
        wait_until(lambda: counted(server, "support", "1")["completion"] > before["completion"])
    wait_until(lambda: llm._llm.get_num_unfinished_requests() == 0)

    after = counted(server, "support", "1")
    assert after["prompt"] > before["prompt"]
    assert 0 < after["completion"] - before["completion"] < 900


@pytest.mark.parametrize("stream", [True, False])
def test_every_choice_is_answered_and_counted(server: RealServer, stream: bool) -> None:  # noqa: FBT001
    before = counted(server, "support", "1")
    client = OpenAI(base_url=f"{server.url}/v1", api_key=server.acme, max_retries=0)
    request: dict[str, Any] = {**GREEDY, "n": 3, "temperature": 1, "seed": 1, "extra_body": {"ignore_eos": True}}

    if stream:
        chunks = list(
            client.chat.completions.create(
                model="support", stream=True, stream_options={"include_usage": True}, **request
            )
        )
        indices = {choice.index for chunk in chunks for choice in chunk.choices}
        usage = chunks[-1].usage
    else:
        answer = client.chat.completions.create(model="support", **request)
        indices = {choice.index for choice in answer.choices}
        usage = answer.usage

    after = counted(server, "support", "1")
    assert indices == {0, 1, 2}
    assert usage is not None
    assert usage.completion_tokens == 3 * 12
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        after["prompt"] - before["prompt"],
        after["completion"] - before["completion"],
    )


def test_the_metrics_tell_tenants_and_adapters_apart(server: RealServer) -> None:
    chat(server, server.acme, adapter="support")
    chat(server, server.globex)

    with server.client(server.platform) as client:
        lines = client.get("/metrics").text.splitlines()

    for tenant, adapter, version in (("acme", "support", "1"), ("globex", "base", "")):
        for kind in ("prompt", "completion"):
            labels = f'adapter="{adapter}",kind="{kind}",tenant="{tenant}",version="{version}"'
            (value,) = [
                line.rpartition(" ")[2] for line in lines if line.startswith(f"lorikeet_tokens_total{{{labels}}}")
            ]
            assert float(value) > 0


def test_an_adapter_is_not_unloaded_under_a_request_that_has_not_left_the_engine(
    server: RealServer, strong_adapters: list[Path]
) -> None:
    engine = server.engine

    async def story() -> set[str]:
        adapter = await engine.load("leaving", strong_adapters[2])
        generating = asyncio.create_task(engine.sample("Where is", adapter, max_tokens=100), name="generating")
        while not cast("Any", engine)._llm._running[adapter.int_id]:  # noqa: ASYNC110  — until vLLM has it
            await asyncio.sleep(0)
        unloading = asyncio.create_task(engine.unload(adapter), name="unloading")
        first, rest = await asyncio.wait({generating, unloading}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*rest)
        return {task.get_name() for task in first}

    assert server.live.call(story()) == {"generating"}


@contextmanager
def connected(server: RealServer, body: dict[str, Any]) -> Iterator[None]:
    """A chat that was sent; its connection is cut when the block ends."""
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: lorikeet\r\nAuthorization: Bearer {server.acme}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall(head.encode() + content)
        yield


def wait_until(is_true: Callable[[], bool], seconds: float = 30) -> None:
    """Ask again and again; each look is a call to the server, so this is no busy loop."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not come true"
