"""The crash campaign: a registry dies wherever it touches the disk or commits, and loses nothing acknowledged.

python -m tests.crash.campaign --seed 1 --points all --database both
python -m tests.crash.campaign --seed 1 --point 117 --database sqlite --loss power    just that one again
"""

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Final

from tests.crash.check import Crash, faults_of
from tests.crash.home import new_home
from tests.crash.killer import Deed, die, lose_power
from tests.crash.story import make_uploads, prepare
from tests.crash.telling import CALLS_BEFORE, Story, tell_rest, write_story
from tests.postgres import Postgres

DATABASES: Final = ("sqlite", "postgresql")
LOSSES: Final[dict[str, Deed]] = {"process": die, "power": lose_power}
"""What is lost: the process (kill -9), or all that was not synced as well."""

_MENDING: Final = frozenset({"collect", "publish again"})
_MEMORY: Final = Path("/dev/shm")  # noqa: S108
"""Where a sync costs nothing: what it is for, the campaign models itself."""


@dataclass(frozen=True)
class Fault:
    """A promise that was broken, and how to see it again."""

    database: str
    loss: str
    seed: int
    point: int
    name: str
    call: str
    what: str

    @property
    def command(self) -> str:
        """Repeats just this point."""
        where = f"--database {self.database} --loss {self.loss}"
        return f"python -m tests.crash.campaign --seed {self.seed} --point {self.point} {where}"


@dataclass
class Count:
    """What was done so far."""

    crashes: int = 0
    acknowledged: int = 0
    """Answers that clients had heard when their registry died."""
    faults: list[Fault] = field(default_factory=list)
    crashes_at: Counter[str] = field(default_factory=Counter)
    """By the point's name."""
    crashes_in: Counter[str] = field(default_factory=Counter)
    """By the call's kind, and by database and loss."""


def run_story(story: Story, loss: str, points: Sequence[int], uploads: Path, count: Count) -> None:
    """Let the registry die at these points of a story, each time from a fresh copy."""
    started = monotonic()
    for done, point in enumerate(points, 1):
        # Who asks again mends what lies there, so what becomes of it otherwise is another crash.
        kind = story.calls[story.call_at(point)].kind
        for asks_again in (True, False) if kind in _MENDING else (True,):
            _crash(story, loss, point, uploads, count, asks_again=asks_again)
        if done % 50 == 0 or done == len(points):
            spent = monotonic() - started
            _say(f"{story.homes[0].kind}, {loss}, seed {story.seed}: {done} of {len(points)} points, {spent:.0f} s")


def _crash(story: Story, loss: str, point: int, uploads: Path, count: Count, *, asks_again: bool) -> None:
    number = story.call_at(point)
    first = max(0, number - CALLS_BEFORE)
    at = point - story.passed[first] + story.passed[0] if number else point
    start = story.homes[first]
    with start.copied(start.path.with_name("dying")) as home:
        telling = tell_rest(story, first, home, uploads, LOSSES[loss], at=at)
        crash = Crash(story, first, telling, home, uploads, asks_again)
        if crash.in_flight is None:
            raise RuntimeError(f"Nothing died at point {point}: the story is not told the same each time.")
        count.crashes += 1
        count.acknowledged += crash.heard
        count.crashes_at[story.points[point - 1]] += 1
        count.crashes_in.update([crash.in_flight.kind, f"{home.kind}, {loss}"])
        for what in faults_of(crash):
            where = (home.kind, loss, story.seed, point, story.points[point - 1], crash.in_flight.kind)
            count.faults.append(Fault(*where, what))
            _say(f"{count.faults[-1]}\n  {count.faults[-1].command}")


def chosen_points(story: Story, wanted: str, seed: int) -> list[int]:
    """All of a story's points, or as many as `wanted`: some of each name."""
    everything = range(1, len(story.points) + 1)
    if wanted == "all":
        return list(everything)
    draw = random.Random(seed)
    by_name: dict[str, list[int]] = {}
    for point in draw.sample(everything, len(everything)):
        by_name.setdefault(story.points[point - 1], []).append(point)
    turns = [points[turn] for turn in range(len(everything)) for points in by_name.values() if turn < len(points)]
    return sorted(turns[: int(wanted)])


def run_stories(
    seeds: Sequence[int],
    points: str | int,
    losses: Sequence[str],
    folder: Path,
    postgres: Postgres | None,
    count: Count,
    *,
    kinds: Sequence[str] = (),
) -> None:
    """Tell each seed's story, on SQLite or on `postgres`, and let it crash.

    `points` is all, how many, or which one; `kinds` of calls, if it is to be a story of its own.
    """
    uploads = make_uploads(folder / "uploads")
    start = new_home(folder / "start", postgres)
    with start.open() as registry:
        prepare(registry, uploads)
    for seed in seeds:
        with ExitStack() as kept:
            story = write_story(seed, start, uploads, folder, kept, kinds=kinds)
            for loss in losses:
                chosen = [points] if isinstance(points, int) else chosen_points(story, points, seed)
                run_story(story, loss, chosen, uploads, count)


def main() -> int:
    """Run what the command line asks for; 1 if a promise was broken."""
    asked = _parser().parse_args()
    count, started = Count(), monotonic()
    losses = tuple(LOSSES) if asked.loss == "both" else (asked.loss,)
    seeds = range(asked.seed, asked.seed + (1 if asked.point else asked.stories))
    for database in DATABASES if asked.database == "both" else (asked.database,):
        with ExitStack() as opened:
            place = _MEMORY if _MEMORY.is_dir() else None
            folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="lorikeet-crash-", dir=place))
            postgres = opened.enter_context(Postgres()) if database == "postgresql" else None
            run_stories(seeds, asked.point or asked.points, losses, Path(folder), postgres, count)
    minutes = (monotonic() - started) / 60
    if asked.json:
        sys.stdout.write(
            json.dumps({**vars(count), "faults": [asdict(one) for one in count.faults], "minutes": minutes}) + "\n"
        )
    else:
        _report(count, minutes)
    return 1 if count.faults else 0


def _report(count: Count, minutes: float) -> None:
    _say(f"\n{count.crashes} crashes, {len(count.faults)} faults, {minutes:.1f} minutes")
    _say(f"answers heard before them: {count.acknowledged}")
    for counts in (count.crashes_at, count.crashes_in):
        _say(", ".join(f"{name} {times}" for name, times in counts.most_common()))


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.campaign")
    parser.add_argument("--seed", type=int, default=1, help="of the first story")
    parser.add_argument("--stories", type=int, default=1, help="how many, with consecutive seeds")
    parser.add_argument("--points", default="all", help="of each story: all, or how many")
    parser.add_argument("--point", type=int, default=0, help="just this one")
    parser.add_argument("--database", choices=[*DATABASES, "both"], default="both")
    parser.add_argument("--loss", choices=[*LOSSES, "both"], default="both")
    parser.add_argument("--json", action="store_true", help="the figures on the standard output")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
