"""What a server that is killed has written down: all but what was used in the last moments, and nothing twice."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import pytest

from adapters import Registry, Scope, UsageRow, open_registry
from tests.builders import make_base
from tests.server.world import OPERATOR, wait_until

TOKENS = 8


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """With a base and a tenant; the servers open the same home."""
    with open_registry(tmp_path / "home") as registry:
        registry.bases.add(OPERATOR, make_base())
        registry.tenants.create(OPERATOR, "acme")
        yield registry


@contextmanager
def killable(home: Path, ledger_seconds: float) -> Iterator[str]:
    """The URL of a server that is killed at the block's end, with what it has in hand."""
    arguments = [sys.executable, "-m", "tests.server.killable", str(home), str(ledger_seconds)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def ask(client: httpx.Client, *, stream: bool = False, choices: int = 1) -> int:
    """The tokens that one chat was answered with."""
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": TOKENS, "n": choices, "stream": stream}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    return TOKENS * choices


def used(registry: Registry) -> UsageRow:
    """All of it."""
    today = datetime.now(UTC).date()
    found = registry.usage.read(OPERATOR, since=today - timedelta(days=1), until=today, by=())
    return found[0] if found else UsageRow()


def test_a_killed_server_loses_no_more_than_what_was_used_since_it_last_wrote(
    registry: Registry, tmp_path: Path
) -> None:
    key = registry.keys.issue(OPERATOR, "acme", name="test", scopes=frozenset({Scope.INFER})).secret
    headers = {"authorization": f"Bearer {key}"}
    for _ in range(2):
        before = used(registry)
        with killable(tmp_path / "home", 0.1) as url, httpx.Client(base_url=url, headers=headers, timeout=30) as client:
            tokens = ask(client) + ask(client, stream=True) + ask(client, choices=3)
            assert client.post("/v1/chat/completions", json={}).status_code == 400
            wait_until(partial(has_counted, registry, before, 4, tokens))
            latest = ask(client, stream=True)  # perhaps it is still written, and perhaps a part of it
        after = used(registry)
        assert after.requests - before.requests in {4, 5}
        assert tokens <= after.completion_tokens - before.completion_tokens <= tokens + latest
        assert after.failed_requests - before.failed_requests == 1


def has_counted(registry: Registry, before: UsageRow, requests: int, tokens: int) -> bool:
    """Whether so many more are in the ledger."""
    now = used(registry)
    return (now.requests, now.completion_tokens) == (before.requests + requests, before.completion_tokens + tokens)
