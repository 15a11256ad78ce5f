"""The same with the kernel's own calls, SQLite's among them: killed in one, or told by one that the disk failed."""

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from tests.crash.check import Crash, faults_of
from tests.crash.home import Home, new_home
from tests.crash.story import make_uploads, prepare
from tests.crash.telling import Story, Telling, hear, write_story
from tests.crash.traced import FAILED

KINDS = ("publish scratch", "promote", "retire scratch", "age", "collect")
KILLED_IN = ("pwrite64", "fsync", "fdatasync", "rename", "mkdir", "chmod", "unlinkat", "ftruncate")
SYNCS = ("fsync", "fdatasync")
SEED = 1
SAMPLED = 4

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@dataclass(frozen=True)
class Traced:
    """A run under strace: what its client heard, and strace's own lines."""

    telling: Telling
    status: int
    lines: list[str]


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_uploads(tmp_path_factory.mktemp("uploads"))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, uploads: Path) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("story")
    start = new_home(folder / "start", None)
    with start.open() as registry:
        prepare(registry, uploads)
    with ExitStack() as kept:
        yield write_story(SEED, start, uploads, folder, kept, kinds=KINDS)


@pytest.fixture(scope="module")
def syscalls(story: Story, uploads: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int]]:
    """Every call that may be killed in, in an order of the seed's: its name, and how many of its name came up to it."""
    with story.homes[0].copied(tmp_path_factory.mktemp("counted") / "home") as home:
        run = run_traced(story, home, uploads)
    assert run.telling.answers == story.answers
    names = [match[1] for line in run.lines if (match := re.match(r"\d+ +(\w+)\(", line))]
    every = [(name, nth) for name in KILLED_IN for nth in range(1, names.count(name) + 1)]
    return random.Random(SEED).sample(every, len(every))


def run_traced(story: Story, home: Home, uploads: Path, *injected: str) -> Traced:
    log = home.path.with_name("strace")
    inject = [word for what in injected for word in ("-e", f"inject={what}")]
    program: list[str | Path] = [sys.executable, "-m", "tests.crash.traced", home.path, uploads]
    ran = subprocess.run(
        ["strace", "-f", "-y", "-o", log, "-e", f"trace=write,{','.join(KILLED_IN)}", *inject, *program],
        input=json.dumps([asdict(call) for call in story.calls]).encode(),
        capture_output=True,
        check=False,
    )
    return Traced(hear(ran.stdout.splitlines()), ran.returncode, log.read_text(errors="replace").splitlines())


def kill_in(story: Story, uploads: Path, folder: Path, syscall: tuple[str, int]) -> None:
    name, nth = syscall
    with story.homes[0].copied(folder / "home") as home:
        run = run_traced(story, home, uploads, f"{name}:signal=KILL:when={nth}")
        assert run.status, f"nothing was killed in {name} {nth}"
        assert faults_of(Crash(story, 0, run.telling, home, uploads)) == [], f"killed in {name} {nth}"


def fail_in(story: Story, uploads: Path, folder: Path, syscall: tuple[str, int]) -> None:
    name, nth = syscall
    with story.homes[0].copied(folder / "home") as home:
        run = run_traced(story, home, uploads, f"{name}:error=EIO:when={nth}")
        at = next(number for number, line in enumerate(run.lines) if "INJECTED" in line)
        said = [line for line in run.lines[at:] if re.search(r"write\(1<.*(answer|failed)", line)]
        # SQLite ignores what its folder's sync says, when it begins a log; and at its end, all was said.
        is_ignored = f"<{home.path}>" in run.lines[at] or not said
        assert is_ignored or (run.status, run.telling.failed) == (FAILED, "storage_unavailable"), run.lines[at]
        assert is_ignored or "failed" in said[0], f"acknowledged after {run.lines[at]}"
        assert faults_of(Crash(story, 0, run.telling, home, uploads)) == [], f"EIO in {name} {nth}"


def test_a_registry_that_is_killed_in_a_system_call_loses_nothing(
    story: Story, uploads: Path, syscalls: list[tuple[str, int]], tmp_path: Path
) -> None:
    for syscall in syscalls[:SAMPLED]:
        kill_in(story, uploads, tmp_path, syscall)


def test_what_the_disk_did_not_sync_is_not_acknowledged(
    story: Story, uploads: Path, syscalls: list[tuple[str, int]], tmp_path: Path
) -> None:
    for syscall in [syscall for syscall in syscalls if syscall[0] in SYNCS][:SAMPLED]:
        fail_in(story, uploads, tmp_path, syscall)


@pytest.mark.slow
def test_every_system_call_may_be_the_last(
    story: Story, uploads: Path, syscalls: list[tuple[str, int]], tmp_path: Path
) -> None:
    for syscall in syscalls:
        kill_in(story, uploads, tmp_path, syscall)


@pytest.mark.slow
def test_every_sync_may_fail(story: Story, uploads: Path, syscalls: list[tuple[str, int]], tmp_path: Path) -> None:
    for syscall in syscalls:
        if syscall[0] in SYNCS:
            fail_in(story, uploads, tmp_path, syscall)
