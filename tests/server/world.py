"""A running server to look at from outside, and to stage things in."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
from openai import OpenAI

from adapters import Base, Caller, ProbeVerdict, Registry, Version, folder_members
from server.engine.fake import FakeEngine
from server.settings import ServerSettings
from tests.builders import make_adapter_folder
from tests.live_server import LiveServer

Value = TypeVar("Value")
OPERATOR = Caller.operator()
ACCEPTED = ProbeVerdict(is_accepted=True)


@dataclass
class World:
    """A running server, and the means to look at it from outside and to stage what its engine does."""

    registry: Registry
    base: Base
    engine: FakeEngine
    live: LiveServer
    keys: dict[str, str]
    """`acme`, `zoo`: tenants' keys for inference; `acme-admin`, `zoo-admin`; `platform`."""
    folder: Path

    def client(self, key: str | None = "acme") -> httpx.Client:
        """An HTTP client with this key."""
        headers = {"authorization": f"Bearer {self.keys[key]}"} if key else {}
        return httpx.Client(base_url=self.live.base_url, headers=headers, timeout=30)

    def openai(self, key: str = "acme") -> OpenAI:
        """The official client."""
        return OpenAI(base_url=f"{self.live.base_url}/v1", api_key=self.keys[key], max_retries=0, timeout=30)

    def make_folder(self, seed: int, **options: Any) -> Path:
        """An adapter's files. `seed` decides its weights."""
        return make_adapter_folder(
            self.folder / f"adapter-{len(list(self.folder.iterdir()))}", self.base, seed=seed, **options
        )

    def publish(
        self, tenant: str, adapter: str, seed: int, *, promote: bool = True, is_probed: bool = True, **options: Any
    ) -> Version:
        """Publish past the server, as a trainer does."""
        probe = (lambda *_: ACCEPTED) if is_probed else None
        members = folder_members(self.make_folder(seed, **options))
        published = self.registry.versions.publish(
            OPERATOR, tenant, adapter, members, base=self.base.fingerprint, probe=probe
        )
        if promote:
            self.registry.aliases.promote(OPERATOR, tenant, adapter, published.version.number)
        return published.version

    def marks(self, text: str) -> set[str]:
        """Whose words these are."""
        return {word.partition("-")[0] for word in text.split()}

    def ask(
        self, adapter: str | None = None, *, key: str = "acme", prompt: str = "hello there", **fields: Any
    ) -> httpx.Response:
        """One chat, not streamed."""
        body = {"messages": [{"role": "user", "content": prompt}], "adapter": adapter, **fields}
        with self.client(key) as client:
            return client.post("/v1/chat/completions", json=body)

    def answer_marks(self, adapter: str | None = None, *, key: str = "acme") -> set[str]:
        """Whose words a chat with this adapter is made of."""
        response = self.ask(adapter, key=key)
        assert response.status_code == 200, response.text
        return self.marks(response.json()["choices"][0]["message"]["content"])

    def close_gate(self) -> None:
        """Hold all generation until `open_gate`."""
        self.live.call(_run(self.engine.gate.clear))

    def open_gate(self) -> None:
        """Let generation go on."""
        self.live.call(_run(self.engine.gate.set))

    def residency(self) -> dict[str, int]:
        """`acme/support@1` → its leases."""
        with self.client("platform") as client:
            residents = client.get("/admin/v1/residency").json()["data"]
        return {f"{one['tenant']}/{one['adapter']}@{one['version']}": one["leases"] for one in residents}

    def metric(self, line_start: str) -> float:
        """The value of the metrics line that starts so; 0 if there is none."""
        with self.client("platform") as client:
            page = client.get("/metrics").text
        return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(line_start))


async def _run(action: Callable[[], None]) -> None:
    action()


def wait_until(claim: Callable[[], bool], deadline_seconds: float = 10) -> None:
    """Return once the claim holds; fail at the deadline."""
    deadline = time.monotonic() + deadline_seconds
    while not claim():
        assert time.monotonic() < deadline, "the deadline passed"


def make_settings(**overrides: Any) -> ServerSettings:
    return ServerSettings(**{"max_loras": 2, "max_cpu_loras": 4, "load_timeout_seconds": 5, **overrides})


def in_thread(work: Callable[[], Value]) -> Callable[[], Value]:
    """Start the work in a thread; what comes back waits for its result."""
    future: Future[Value] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  — told to whoever waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return partial(future.result, 30)
