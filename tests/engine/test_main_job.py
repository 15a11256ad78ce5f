"""The main job through the commands a user types, on a tiny model: base, train, publish, merge, serve, ask, stop."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai import OpenAI

from tests.live_server import free_port
from tests.task import ANSWER, METHODS, write_task

pytestmark = pytest.mark.engine

LORIKEET = str(Path(sys.executable).parent / "lorikeet")
ADAPTERS = ("lora", "qlora", "dora", "adalora")
"""The last two are converted before they are published."""
HELD_BACK = "Where is my piano?"
"""In no example."""
Run = Callable[..., str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("main") / "home"


@pytest.fixture(scope="module")
def lorikeet(home: Path) -> Run:
    """Runs a command that must succeed, and gives what it printed."""

    def run(*words: str) -> str:
        done = subprocess.run(
            [LORIKEET, *words], env=environment(home), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def key(lorikeet: Run, home: Path) -> str:
    """The key of a tenant whose adapters and model learned the task, each by its method, and passed."""
    from tests.tiny_model import make_tiny_checkpoint

    folder = home.parent
    lorikeet("base", str(make_tiny_checkpoint(folder / "tiny")), "--name", "tiny")
    lorikeet("adapters", "tenants", "create", "acme")
    for method in (*ADAPTERS, "full"):
        job = write_task(folder, **METHODS[method], judge={"min_metrics": {"exact_match": 0.9}})
        words = ("train", "run", str(job), "--publish", f"acme/{method}", "--promote", "--json")
        trained = json.loads(lorikeet(*words))
        before, after = (trained["report"][side]["metrics"]["exact_match"] for side in ("base", "result"))
        assert (trained["version"], trained["live"], before, after) == (f"acme/{method}@1", True, 0.0, 1.0)
    issued: str = json.loads(lorikeet("adapters", "keys", "create", "--tenant", "acme", "--json"))["secret"]
    return issued


def test_adapters_that_were_trained_answer_on_one_base(lorikeet: Run, key: str, home: Path) -> None:
    with served(home, "tiny") as url:
        assert ask(url, key, "tiny")[0] != ANSWER
        # Published where no engine ran, they are probed before their first answers
        for name in ADAPTERS:
            assert ask(url, key, name) == (ANSWER, f"acme/{name}@1")
    (version,) = json.loads(lorikeet("adapters", "show", "acme/lora", "--json"))
    assert version["state"] == "ready"


def test_a_model_that_was_trained_whole_answers(key: str, home: Path) -> None:
    with served(home, "acme/full@1") as url:
        assert ask(url, key, "full@1") == (ANSWER, "acme/full@1")


def test_a_merge_answers_as_its_adapter(lorikeet: Run, key: str, home: Path) -> None:
    lorikeet("train", "merge", "acme/lora@1", "--out", str(home.parent / "merged"), "--publish", "acme/merged")
    with served(home, "acme/merged@1") as url:
        assert ask(url, key, "merged@1") == (ANSWER, "acme/merged@1")


@contextmanager
def served(home: Path, base: str) -> Iterator[str]:
    """`lorikeet serve`; ends with a clean stop."""
    port = free_port()
    command = [LORIKEET, "serve", "--base", base, "--port", str(port), "--max-loras", "2", "--max-model-len", "512"]
    variables = environment(home) | {"LORIKEET_KV_CACHE_MEMORY_BYTES": str(1 << 27)}
    path = home.parent / f"serve-{port}.log"
    with (
        path.open("wb") as log,
        subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        try:
            wait_until_listening(server, path)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0, path.read_text()


def ask(url: str, key: str, model: str) -> tuple[str, str | None]:
    """What it answers to a question that it was not trained on, and who it says has answered."""
    client = OpenAI(base_url=url, api_key=key, max_retries=0)
    answer = client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": HELD_BACK}], temperature=0, max_tokens=8
    )
    return answer.parse().choices[0].message.content or "", answer.headers.get("x-lorikeet-adapter")


def environment(home: Path) -> dict[str, str]:
    """A user's shell."""
    return os.environ | {"LORIKEET_HOME": str(home)}  # noqa: TID251  — see above


def wait_until_listening(server: "subprocess.Popen[str]", log: Path) -> None:
    """Read what the server says of its start until it listens; if it ends before that, show why."""
    assert server.stdout is not None
    assert any("listening on" in line for line in server.stdout), log.read_text()
