"""Runs that were broken off: by a signal, by kill -9, by a judge that fails. What was learned is not lost."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapters import Caller, Registry
from tests.task import METHODS, write_task
from tests.trainer.conftest import Command
from trainer.run_folder import Metrics
from trainer.step import Checkpoint, Step, Told

SHORT: Any = {"max_steps": 8, "checkpoint_steps": 2, "output": "run"} | METHODS["lora"]


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def losses(folder: Path) -> list[float]:
    told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in told if line["event"] == "step"]


@pytest.fixture
def whole(lorikeet: Command, tmp_path: Path) -> Path:
    """The folder of a run that nothing broke off."""
    (tmp_path / "whole").mkdir()
    shown = lorikeet("train", "run", write_task(tmp_path / "whole", is_judged=False, **SHORT), "--json")
    assert shown.code == 0, shown.err
    return Path(shown.json["run"])


@pytest.mark.parametrize("step", [3, 8])
def test_a_run_that_was_killed_goes_on_to_the_same_weights(
    lorikeet: Command, tmp_path: Path, home: Path, whole: Path, step: int
) -> None:
    job = write_task(tmp_path, is_judged=False, **SHORT)
    killed = [sys.executable, "-m", "tests.trainer.killed_command", str(step), "train", "run", str(job)]
    environment = os.environ | {"LORIKEET_HOME": str(home)}  # noqa: TID251  — a user's shell
    assert subprocess.run(killed, env=environment, check=False, capture_output=True).returncode == -signal.SIGKILL
    folder = tmp_path / "run"
    assert not (folder / "adapter").exists()

    again = lorikeet("train", "run", job)
    assert (again.code, "holds an interrupted run" in again.err) == (2, True)
    resumed = lorikeet("train", "resume", folder, "--json")
    assert resumed.code == 0, resumed.err
    assert (weights(folder), losses(folder)) == (weights(whole), losses(whole))


def test_an_interrupted_run_says_how_to_go_on_and_does(
    lorikeet: Command, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_task(tmp_path, is_judged=False, **SHORT)
    with monkeypatch.context() as patched:
        write = Metrics.write

        def interrupt(self: Metrics, told: Told) -> None:
            write(self, told)
            if isinstance(told, Step) and told.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        patched.setattr(Metrics, "write", interrupt)
        shown = lorikeet("train", "run", job)
    assert shown.code == 128 + signal.SIGTERM
    assert f"lorikeet train resume {tmp_path / 'run'}" in shown.err
    assert lorikeet("train", "run", job, "--reuse").code == 0
    assert weights(tmp_path / "run") == weights(whole)


@pytest.mark.parametrize("change", ["job", "data", "base"])
def test_a_run_does_not_go_on_as_another(
    lorikeet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    job = write_task(tmp_path, is_judged=False, **SHORT)
    with monkeypatch.context() as patched:
        write = Metrics.write

        def fail(self: Metrics, told: Told) -> None:
            write(self, told)
            if isinstance(told, Checkpoint):
                raise OSError("disk full")

        patched.setattr(Metrics, "write", fail)
        with pytest.raises(OSError, match="disk full"):
            lorikeet("train", "run", job)
    folder = tmp_path / "run"
    match change:
        case "job":
            started = json.loads((folder / "started.json").read_text())
            started["stated"]["rank"] = 8
            (folder / "started.json").write_text(json.dumps(started))
        case "data":
            lines = (tmp_path / "task.jsonl").read_text().splitlines()
            (tmp_path / "task.jsonl").write_text("\n".join(lines[:-1]))
        case _:
            from tests.tiny_model import make_tiny_checkpoint

            other = make_tiny_checkpoint(tmp_path / "other" / "tiny", seed=1)
            assert lorikeet("base", other, "--name", "tiny").code == 0
    shown = lorikeet("train", "resume", folder)
    assert (shown.code, "can't be gone on with" in shown.err) == (2, True)
    assert not (folder / "adapter").exists()


def test_a_judge_that_fails_loses_no_training(lorikeet: Command, tmp_path: Path) -> None:
    judge: dict[str, object] = {"metrics": ["command"], "command": "exit 3"}
    shown = lorikeet("train", "run", write_task(tmp_path, judge=judge, **SHORT))
    assert (shown.code, "the training itself is done" in shown.err) == (2, True)
    mended = lorikeet("train", "run", write_task(tmp_path, **SHORT), "--reuse", "--json")
    assert mended.code == 0, mended.err
    assert mended.json["report"] is not None
    assert len(losses(tmp_path / "run")) == 8


def test_another_runs_work_is_not_thrown_away_unasked(lorikeet: Command, tmp_path: Path) -> None:
    job = write_task(tmp_path, is_judged=False, **SHORT)
    assert lorikeet("train", "run", job).code == 0
    before = weights(tmp_path / "run")
    shown = lorikeet("train", "run", job, "--set", "seed=7")
    assert (shown.code, "holds a run of another job" in shown.err) == (2, True)
    assert weights(tmp_path / "run") == before
    assert lorikeet("train", "run", job, "--set", "seed=7", "--restart").code == 0
    assert weights(tmp_path / "run") != before


def test_a_folder_that_no_run_made_is_left_alone(lorikeet: Command, tmp_path: Path) -> None:
    job = write_task(tmp_path, is_judged=False, **SHORT | {"output": "."})
    (tmp_path / "model").mkdir()
    shown = lorikeet("train", "run", job)
    assert (shown.code, "which no run made" in shown.err) == (2, True)
    assert {entry.name for entry in tmp_path.iterdir()} >= {"task.yaml", "task.jsonl", "model"}


def test_a_folder_that_cant_be_made_is_one_line(lorikeet: Command, tmp_path: Path) -> None:
    shown = lorikeet("train", "run", write_task(tmp_path, is_judged=False, **SHORT | {"output": "/dev/null/run"}))
    assert (shown.code, "can't be used as the run's folder" in shown.err) == (2, True)


def test_stricter_rules_judge_a_finished_run_again(lorikeet: Command, tmp_path: Path, registry: Registry) -> None:
    weak: dict[str, object] = {"min_stop_rate": 0.0, "max_loss_ratio": 100.0}
    fields: Any = SHORT | {"max_steps": 2}
    assert lorikeet("train", "run", write_task(tmp_path, judge=weak, **fields)).code == 0
    strict = write_task(tmp_path, judge=weak | {"min_metrics": {"exact_match": 0.99}}, **fields)
    shown = lorikeet("train", "run", strict, "--reuse", "--publish", "acme/aye", "--promote", "--json")
    assert (shown.code, shown.json["reused"], shown.json["live"]) == (1, True, False), shown.err
    assert registry.adapters.get(Caller.operator(), "acme", "aye").live_version is None
