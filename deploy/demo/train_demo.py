"""The trainer on the real base: every method learns a task, and every form of the result answers from a running server.

`make train-demo`. Full, LoRA and QLoRA each learn which of five queues a request belongs to, are judged, published and
served; the LoRA is merged, the merge is quantised three ways, and each is served with an adapter on top. Every claim is
checked on the way: the first that does not hold ends the demo with exit code 1.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from openai import OpenAI
from rich.table import Table

from adapters import Caller, RegistrySettings, Scope
from deploy.demo.stage import HERE, console, create_tenants, free_port, lorikeet, running_server, step

JOB = str(HERE / "routing.yaml")
METHODS = {
    "lora": (),
    # In 8 bits: so small a base loses too much in 4, and the adapter is served on the plain one (PERFORMANCE.md).
    "qlora": ("--set", "method=qlora", "--set", "quantization=int8"),
    "full": ("--set", "method=full", "--set", "learning_rate=2e-4"),
}
SCHEMES = {"w8a8": (), "w4a16": ("--group-size", "64"), "gptq": ("--group-size", "64")}
ENOUGH = 0.9


@dataclass(frozen=True)
class Learned:
    """A finished run, its version, and its report in short."""

    version: str
    folder: Path
    report: dict[str, Any]


def main() -> None:
    """The whole of it."""
    started = time.monotonic()
    with step("Prepare the base model and a tenant"):
        lorikeet("base")
        create_tenants("acme")

    # Learn
    with step("Plan: what would each method take?"):
        for options in METHODS.values():
            lorikeet("train", "plan", JOB, *options)
    learned = {method: learn(method) for method in METHODS}
    show(learned)

    # Merge, quantise, and put an adapter on top
    with step("Merge the LoRA"):
        merged = make("merge", learned["lora"].version, "--publish", "acme/merged")
    with step("Train an adapter on the merge"):
        polite = train_polite(merged)
    quantised = {scheme: quantise(scheme, merged) for scheme in SCHEMES}

    # Serve each
    held_out = read_held_out(learned["lora"].folder)
    with serving() as client:
        for method in ("lora", "qlora"):
            require_right(client, learned[method].version, held_out)
        answers = ask_all(client, learned["lora"].version, held_out)
    with serving("--base", learned["full"].version) as client:
        require_right(client, learned["full"].version, held_out)
    with serving("--base", merged) as client:
        same = ask_all(client, merged, held_out)
        require(
            sum(map(str.__eq__, answers, same)) / len(same) >= ENOUGH,
            "the merge answers as the adapter does",
        )
    for version in quantised.values():
        with serving("--base", version) as client:
            require_right(client, version, held_out)
            require_polite(client, polite)
    console.print(f"\n[bold green]Done[/] in {time.monotonic() - started:.0f} s.")


def learn(method: str) -> Learned:
    """Train, judge and publish; it is live only if its report passed."""
    with step(f"Train with {method}: is the metric near 0 before, and above {ENOUGH} after?"):
        words = ("--reuse", "--json", "--publish", f"acme/routing-{method}", "--promote")
        outcome = json.loads(lorikeet("train", "run", JOB, *METHODS[method], *words))
    return Learned(outcome["version"], Path(outcome["run"]), outcome["report"])


def show(learned: dict[str, Learned]) -> None:
    """A row a method."""
    table = Table("method", "exact match before", "after", "held-out loss before", "after")
    for method, one in learned.items():
        base, result = one.report["base"], one.report["result"]
        before, after = base["metrics"]["exact_match"], result["metrics"]["exact_match"]
        table.add_row(method, f"{before:.2f}", f"{after:.2f}", f"{base['loss']:.3f}", f"{result['loss']:.3f}")
        require(before <= 1 - ENOUGH and after > ENOUGH, f"{method} learned the task")
    console.print(table)


def train_polite(merged: str) -> str:
    """The house style of the other demo, on the merged model: it is asked through what was made of that model."""
    words = ("--set", f"base={merged}", "--reuse", "--json")
    outcome = json.loads(
        lorikeet("train", "run", str(HERE / "concierge.yaml"), *words, "--publish", "acme/polite", "--promote")
    )
    return str(outcome["version"])


def quantise(scheme: str, merged: str) -> str:
    """The merge in fewer bits, judged beside the merge."""
    with step(f"Quantise the merge: {scheme}"):
        words = ("--scheme", scheme, *SCHEMES[scheme], "--publish", f"acme/merged-{scheme}")
        version = make("quantize", merged, *words)
        lorikeet("train", "judge", version, "--job", JOB, "--min", f"exact_match={ENOUGH}")
    return version


def make(verb: str, *words: str) -> str:
    """The version that a verb makes and publishes; its folder is not kept."""
    with TemporaryDirectory() as folder:
        made = json.loads(lorikeet("train", verb, *words, "--out", str(Path(folder) / "made"), "--json"))
    return str(made["version"])


# --- serving ----------------------------------------------------------------------------------------------------------


@contextmanager
def serving(*options: str) -> Iterator[OpenAI]:
    """A server, and acme's client of it."""
    with RegistrySettings().open() as registry:
        key = registry.keys.issue(Caller.operator(), "acme", name="demo", scopes=frozenset({Scope.INFER})).secret
    port = free_port()
    with running_server(port, *options), OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key) as client:
        yield client


def read_held_out(folder: Path) -> list[tuple[str, str]]:
    """The questions and answers that no run was trained on."""
    lines = (folder / "held_out.jsonl").read_text().splitlines()
    conversations = [json.loads(line)["messages"] for line in lines]
    return [(turns[0]["content"], turns[-1]["content"]) for turns in conversations]


def ask_all(client: OpenAI, version: str, held_out: list[tuple[str, str]]) -> list[str]:
    """What the version answers to each question."""
    return [ask(client, version, question) for question, _ in held_out]


def ask(client: OpenAI, version: str, question: str) -> str:
    """One chat, greedily."""
    completion = client.chat.completions.create(
        model=version.removeprefix("acme/"),
        messages=[{"role": "user", "content": question}],
        max_tokens=32,
        temperature=0,
    )
    return (completion.choices[0].message.content or "").strip()


def require_right(client: OpenAI, version: str, held_out: list[tuple[str, str]]) -> None:
    """The served version answers as it should."""
    given = ask_all(client, version, held_out)
    right = sum(answer == expected for answer, (_, expected) in zip(given, held_out, strict=True))
    require(right / len(held_out) > ENOUGH, f"{version} answers {right} of {len(held_out)} rightly, served")


def require_polite(client: OpenAI, version: str) -> None:
    """The adapter on top is at work."""
    answer = ask(client, version, "Can I pay with two different cards?")
    require(answer.startswith("Ahoy!"), f"{version} on top answers in its own style: {answer[:60]!r}")


def require(holds: bool, claim: str) -> None:  # noqa: FBT001  — a claim and whether it holds
    """Say it, or end."""
    console.print(f"  {'✓' if holds else '✗'} {claim}", markup=False)
    if not holds:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
