import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapters import Caller, Registry, open_registry
from lorikeet import main
from tests.tiny_model import make_tiny_checkpoint
from trainer.base import prepare_base
from trainer.progress import Narrator

CONVERSATIONS = (
    ("Where is my order?", "It will arrive tomorrow."),
    ("How do I reset my password?", "Follow the link in the message."),
    ("The parcel was damaged.", "We will send another one at once."),
    ("What is the capital of France?", "Paris."),
)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


UNJUDGED = {"trackers": [], "judge": {"enabled": False}}
"""Without what takes time, where it is not the point."""

Command = Callable[..., Outcome]
WriteJob = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def prepared_home(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("prepared")
    with open_registry(home) as registry:
        registry.tenants.create(Caller.operator(), "acme")
        prepare_base(str(tiny), None, registry=registry, home=home, narrator=Narrator())
    return home


@pytest.fixture
def home(prepared_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry with the tenant acme and the base tiny."""
    home = tmp_path / "home"
    shutil.copytree(prepared_home, home)
    monkeypatch.setenv("LORIKEET_HOME", str(home))
    return home


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    with open_registry(home) as registry:
        yield registry


@pytest.fixture
def lorikeet(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, in this process, at home."""
    assert home.is_dir()

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["lorikeet", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        shown = capsys.readouterr()
        code = left.value.code
        return Outcome(code if isinstance(code, int) else 0, shown.out, shown.err)

    return run


@pytest.fixture
def write_job(tmp_path: Path) -> WriteJob:
    """Write a job of two steps and its data; keywords replace the job's keys, None leaves one out."""

    def write(**keys: object) -> Path:
        lines = (
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
            for question, answer in CONVERSATIONS
        )
        (tmp_path / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        fields = {"base": "tiny", "data": "chat.jsonl", "rank": 4, "max_steps": 2, "batch_size": 2} | UNJUDGED | keys
        path = tmp_path / "job.yaml"
        path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items() if value is not None))
        return path

    return write
