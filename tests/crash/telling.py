"""A story told to a registry, by a process that may die over it, and what its client heard."""

import json
import os
import random
import signal
import sys
import traceback
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapters import IssuedKey, Registry
from tests.crash.calls import Call, tell
from tests.crash.home import Home
from tests.crash.killer import Deed, Points, watched
from tests.crash.state import State, read_state
from tests.crash.story import choose, kinds_of

CALLS_BEFORE: Final = 1
"""How many calls a process makes before the one that it dies in: it has a connection, and a log that is not empty."""


@dataclass(frozen=True)
class Story:
    """Calls, what is answered to each, and how it all stands before the first one and after each."""

    seed: int
    calls: tuple[Call, ...]
    answers: tuple[Any, ...]
    states: tuple[State, ...]
    homes: tuple[Home, ...]
    secrets: tuple[Mapping[str, str], ...]
    """Of the keys that were issued up to there, by name."""
    points: tuple[str, ...] = ()
    """All that a process passes that opens a registry and makes every call."""
    passed: tuple[int, ...] = ()
    """How many of them it has passed when it has opened the registry, and after each call."""

    def call_at(self, point: int) -> int:
        """The number of the call that the `point`-th point belongs to; points are counted from 1."""
        return max(0, bisect_left(self.passed, point) - 1)


@dataclass(frozen=True)
class Telling:
    """What a client heard before the line went dead."""

    answers: tuple[Any, ...]
    secrets: tuple[str, ...]
    """Of the keys that were issued to it; empty for other calls."""
    points: tuple[str, ...]
    """All of them, if it heard everything; else empty."""
    passed: tuple[int, ...]
    failed: str | None = None
    """The code of the StorageError that its last call was answered with, if it was."""


def write_story(
    seed: int, start: Home, uploads: Path, homes: Path, kept: ExitStack, *, kinds: Sequence[str] = ()
) -> Story:
    """Carry a story out, choosing its calls on the way, and keep a copy of how it stands after each, in `homes`."""
    draw = random.Random(seed)
    calls: list[Call] = []
    answers: list[Any] = []
    secrets: list[Mapping[str, str]] = [{}]
    with start.open() as registry:
        states = [read_state(registry)]
    stages = [kept.enter_context(start.copied(homes / f"{start.kind}-{seed}-0"))]
    now = kept.enter_context(start.copied(homes / f"{start.kind}-{seed}-now"))
    for number, kind in enumerate(kinds or kinds_of(seed)):
        with now.open() as registry:
            call = choose(registry, kind, draw, number)
            answer, result = tell(registry, uploads, call, number)
            states.append(read_state(registry))
        issued = {result.key.name: result.secret} if isinstance(result, IssuedKey) else {}
        calls.append(call)
        answers.append(answer)
        secrets.append({**secrets[-1], **issued})
        stages.append(kept.enter_context(now.copied(homes / f"{start.kind}-{seed}-{number + 1}")))
    story = Story(seed, tuple(calls), tuple(answers), tuple(states), tuple(stages), tuple(secrets))
    with start.copied(homes / f"{start.kind}-{seed}-told") as home:
        telling = tell_story(story, home, uploads)
    return Story(**{**vars(story), "points": telling.points, "passed": telling.passed})


def tell_story(story: Story, home: Home, uploads: Path, deed: Deed | None = None, *, at: int = 1) -> Telling:
    """Have a process of its own make the calls, with `deed` from its `at`-th point on.

    Raises:
        RuntimeError: it ended in another way than by being killed or by making every call.
    """
    return tell_rest(story, 0, home, uploads, deed, at=at)


def tell_rest(story: Story, first: int, home: Home, uploads: Path, deed: Deed | None = None, *, at: int = 1) -> Telling:
    """The same from the call `first` on, in a home that stands there; the points are counted from the opening."""
    ours, its = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        _be_the_process(story.calls, first, home, uploads, Points(home.path, deed, at=at), its)
    os.close(its)
    with os.fdopen(ours, "rb") as heard:
        telling = hear(heard)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in {0, -signal.SIGKILL}:
        raise RuntimeError(f"The process that told the story ended with {status}.")
    return telling


def hear(said: Iterable[bytes]) -> Telling:
    """What a process that makes calls has said."""
    lines = [json.loads(line) for line in said]
    return Telling(
        answers=tuple(line["answer"] for line in lines if "answer" in line),
        secrets=tuple(line["secret"] for line in lines if "answer" in line),
        points=tuple(name for line in lines for name in line.get("points", ())),
        passed=tuple(line["passed"] for line in lines if "passed" in line),
        failed=next((line["failed"] for line in lines if "failed" in line), None),
    )


def make_calls(
    registry: Registry, uploads: Path, calls: Sequence[Call], points: Points, pipe: int, *, first: int = 0
) -> None:
    """Make the calls from the number `first` on, and say what each is answered."""
    say(pipe, {"passed": len(points.names)})
    for number, call in enumerate(calls[first:], first):
        answer, result = tell(registry, uploads, call, number)
        secret = result.secret if isinstance(result, IssuedKey) else ""
        say(pipe, {"answer": answer, "secret": secret, "passed": len(points.names)})


def _be_the_process(calls: Sequence[Call], first: int, home: Home, uploads: Path, points: Points, pipe: int) -> None:
    status = 3
    try:
        with watched(points), home.open() as registry:
            make_calls(registry, uploads, calls, points, pipe, first=first)
        say(pipe, {"points": points.names})
        status = 0
    except BaseException:  # noqa: BLE001  — a process's edge
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def say(pipe: int, line: Any) -> None:
    """Tell the parent."""
    # At once, and whole: nobody else writes to this pipe.
    os.write(pipe, json.dumps(line).encode() + b"\n")
