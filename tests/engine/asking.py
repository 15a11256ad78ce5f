"""Asking the real server, and looking at what it holds and counts."""

from typing import Any

import httpx

from tests.engine.conftest import RealServer

QUESTION = [{"role": "user", "content": "Where is my order?"}]
GREEDY: dict[str, Any] = {"messages": QUESTION, "temperature": 0, "max_tokens": 12}


def chat(server: RealServer, key: str, **fields: Any) -> httpx.Response:
    with server.client(key) as client:
        return client.post("/v1/chat/completions", json=GREEDY | fields)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    content: str = answer.json()["choices"][0]["message"]["content"]
    return content


def leases(server: RealServer) -> dict[str, int]:
    """Open leases by version, as the admin API tells them."""
    with server.client(server.platform) as client:
        residents = client.get("/admin/v1/residency").json()["data"]
    return {f"{one['tenant']}/{one['adapter']}@{one['version']}": one["leases"] for one in residents}


def counted(server: RealServer, adapter: str, version: str) -> dict[str, float]:
    """acme's tokens so far, by kind, as /metrics tells them."""
    with server.client(server.platform) as client:
        lines = client.get("/metrics").text.splitlines()
    label = f'adapter="{adapter}",kind="{{kind}}",tenant="acme",version="{version}"'
    return {
        kind: sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith(f"lorikeet_tokens_total{{{label.format(kind=kind)}}}")
        )
        for kind in ("prompt", "completion")
    }
