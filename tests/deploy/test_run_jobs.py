"""The trainer service: job folders, one after the other, through the `lorikeet` on the PATH."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.deploy.promql import DEPLOY
from tests.server.world import wait_until

SCRIPT = DEPLOY / "run-jobs.sh"
STUB = """#!/bin/sh
echo "$*" >>"$CALLS"
grep -q wait "$3" && { echo $$ >"$CALLS.pid"; exec sleep 600; }
grep -q bad "$3" && { echo "lorikeet: no" >&2; exit 2; }
echo '{"version": 1}'
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin" / "lorikeet"
    stub.write_text(STUB)
    stub.chmod(0o755)
    (tmp_path / "jobs").mkdir()
    return tmp_path / "jobs"


def put(jobs: Path, name: str, text: str = "good") -> None:
    folder = jobs / name
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(text)
    (folder / "rows.jsonl").write_text("{}")


def environment(jobs: Path) -> dict[str, str]:
    return {"PATH": f"{jobs.parent / 'bin'}:{os.defpath}", "CALLS": str(jobs.parent / "calls")}


def run(jobs: Path) -> list[str]:
    """What was called."""
    subprocess.run(["sh", SCRIPT, jobs, "--once"], env=environment(jobs), check=True, capture_output=True)
    calls = jobs.parent / "calls"
    return calls.read_text().splitlines() if calls.exists() else []


def test_each_job_is_trained_published_under_its_name_and_put_away_with_what_came_of_it(jobs: Path) -> None:
    put(jobs, "new/acme/support")
    put(jobs, "new/zoo/keeper", "bad")
    assert run(jobs) == [
        "train run running/acme/support/job.yaml --publish acme/support --reuse --json",
        "train run running/zoo/keeper/job.yaml --publish zoo/keeper --reuse --json",
    ]
    (done,) = jobs.glob("done/acme/support-*")
    assert (done / "result.json").read_text() == '{"version": 1}\n'
    assert (done / "rows.jsonl").exists()
    (failed,) = jobs.glob("failed/zoo/keeper-*")
    assert (failed / "log.txt").read_text() == "lorikeet: no\n"
    assert not list(jobs.glob("new/*/*"))
    assert not list(jobs.glob("running/*/*"))


def test_the_one_that_was_interrupted_goes_on_first(jobs: Path) -> None:
    put(jobs, "new/acme/a")
    put(jobs, "running/zoo/interrupted")
    assert [call.split()[4] for call in run(jobs)] == ["zoo/interrupted", "acme/a"]


def test_without_jobs_nothing_is_called(jobs: Path) -> None:
    assert run(jobs) == []


def test_a_stop_reaches_the_training_and_leaves_it_to_be_resumed(jobs: Path) -> None:
    put(jobs, "new/acme/long", "wait")
    with subprocess.Popen(["sh", SCRIPT, jobs], env=environment(jobs), stderr=subprocess.DEVNULL) as service:
        pid = jobs.parent / "calls.pid"
        wait_until(lambda: pid.exists() and bool(pid.read_text()))
        service.send_signal(signal.SIGTERM)
        assert service.wait(10) == 143
    wait_until(lambda: not Path(f"/proc/{pid.read_text().strip()}").exists())
    assert (jobs / "running/acme/long/job.yaml").exists()
