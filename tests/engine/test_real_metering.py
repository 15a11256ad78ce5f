"""What the real engine used, as the ledger has it: the numbers that the answers tell."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from adapters import UsageField, UsageRow
from tests.engine.conftest import OPERATOR, RealServer
from tests.prometheus import promtool

pytestmark = pytest.mark.engine

ONLY_LINT = 3
"""What promtool exits with if the page can be read whole."""


def used(server: RealServer, tenant: str) -> UsageRow:
    """All of a tenant's, with `support`."""
    today = datetime.now(UTC).date()
    found = server.registry.usage.read(
        OPERATOR,
        since=today - timedelta(days=1),
        until=today,
        tenant=tenant,
        adapter="support",
        by=(UsageField.ADAPTER,),
    )
    return found[0] if found else UsageRow()


def ask(server: RealServer, **fields: Any) -> dict[str, Any]:
    """One answer's usage."""
    prompt = "Tell me of all that is in the parcel, and of where it has been until now. " * 4
    body = {"messages": [{"role": "user", "content": prompt}], "adapter": "support", "max_tokens": 6, "temperature": 1}
    with server.client(server.globex) as client:
        answer = client.post("/v1/chat/completions", json=body | fields)
    assert answer.status_code == 200, answer.text
    usage: dict[str, Any] = answer.json()["usage"]
    return usage


def test_the_ledger_has_the_tokens_of_the_answers_and_those_that_the_cache_had(server: RealServer) -> None:
    before = used(server, "globex")
    answers = [ask(server), ask(server), ask(server, n=3, ignore_eos=True)]
    assert answers[1]["prompt_tokens_details"]["cached_tokens"] > 0
    deadline = time.monotonic() + 30
    while (after := used(server, "globex")).requests < before.requests + 3:
        assert time.monotonic() < deadline
    assert after.prompt_tokens - before.prompt_tokens == sum(one["prompt_tokens"] for one in answers)
    assert after.completion_tokens - before.completion_tokens == sum(one["completion_tokens"] for one in answers)
    cached = sum((one["prompt_tokens_details"] or {}).get("cached_tokens", 0) for one in answers)
    assert after.cached_tokens - before.cached_tokens == cached
    assert after.answered_requests - before.answered_requests == 3


def test_promtool_finds_nothing_wrong_with_the_page_but_the_colons_in_vllms_names(server: RealServer) -> None:
    ask(server)
    with server.client(server.platform) as client:
        page = client.get("/metrics")
    assert b"vllm:num_requests_running" in page.content
    assert b"lora_requests_info" not in page.content
    checked = promtool("check", "metrics", stdin=page.content)
    complaints = (checked.stdout + checked.stderr).decode().splitlines()
    assert [line for line in complaints if not line.startswith("vllm:")] == []
    assert checked.returncode in {0, ONLY_LINT}
