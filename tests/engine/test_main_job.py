"""The main job through the commands a user types, on a tiny model: base, train, publish, serve, ask, stop."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from openai import OpenAI

pytestmark = pytest.mark.engine

LORIKEET = str(Path(sys.executable).parent / "lorikeet")
Run = Callable[..., str]

JOB = """\
base: tiny
data: chats.jsonl
rank: 8
learning_rate: 5e-3
max_steps: 4
max_length: 64
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def lorikeet(home: Path) -> Run:
    """Runs a command that must succeed, and gives what it printed."""

    def run(*words: str) -> str:
        environment = os.environ | {"LORIKEET_HOME": str(home)}  # noqa: TID251  — a user's shell
        done = subprocess.run(
            [LORIKEET, *words], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_from_a_checkpoint_and_examples_to_a_served_adapter_and_a_clean_stop(
    lorikeet: Run, home: Path, tmp_path: Path
) -> None:
    from tests.tiny_model import make_tiny_checkpoint

    # Train and publish
    chats = [
        {"messages": [{"role": "user", "content": f"one {word}"}, {"role": "assistant", "content": "two three"}]}
        for word in ("four", "five", "six", "seven", "eight")
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (tmp_path / "job.yaml").write_text(JOB)
    lorikeet("base", str(make_tiny_checkpoint(tmp_path / "tiny")), "--name", "tiny")
    lorikeet("adapters", "tenants", "create", "acme")
    trained = json.loads(
        lorikeet("train", "run", str(tmp_path / "job.yaml"), "--publish", "acme/counter", "--promote", "--json")
    )
    key = json.loads(lorikeet("adapters", "keys", "create", "--tenant", "acme", "--json"))["secret"]
    assert (trained["version"], trained["live"]) == ("acme/counter@1", True)

    # Serve
    port = free_port()
    command = [LORIKEET, "serve", "--base", "tiny", "--port", str(port), "--max-loras", "2", "--max-model-len", "512"]
    environment = os.environ | {  # noqa: TID251  — a user's shell
        "LORIKEET_HOME": str(home),
        "LORIKEET_KV_CACHE_MEMORY_BYTES": str(1 << 27),
    }
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        try:
            wait_until_listening(server, tmp_path / "log")

            # Ask: published where no engine ran, it is probed before this first answer
            client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)
            answers = [
                client.chat.completions.with_raw_response.create(
                    model=model, messages=[{"role": "user", "content": "one four"}], temperature=0, max_tokens=8
                )
                for model in ("tiny", "counter")
            ]
            assert [answer.headers.get("x-lorikeet-adapter") for answer in answers] == [None, "acme/counter@1"]
            (version,) = json.loads(lorikeet("adapters", "show", "acme/counter", "--json"))
            assert version["state"] == "ready"
        finally:
            # Stop
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0, (tmp_path / "log").read_text()


def wait_until_listening(server: "subprocess.Popen[str]", log: Path) -> None:
    """Read what the server says of its start until it listens; if it ends before that, show why."""
    assert server.stdout is not None
    assert any("listening on" in line for line in server.stdout), log.read_text()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
