"""A program that trains, is killed at a point where the disk changes, and resumes; for `test_resume.py`.

The libraries are loaded once: each training is a fork of a process that has them, and has no threads yet.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.settings import prepare_environment

prepare_environment()

from tests.crash.killer import Points, die, watched  # noqa: E402  — after the environment is prepared
from tests.trainer.recipe_runs import curve, learn, make_task  # noqa: E402
from trainer.whole_checkpoint import last_whole_checkpoint  # noqa: E402

KEYS: dict[str, Any] = {
    "train": 8,
    "batch_size": 2,
    "epochs": 2.0,
    "checkpoint_steps": 2,
    "held_out": 3,
    "eval_steps": 4,
}


def main(base: Path, folder: Path, kills: int) -> None:
    """Print the points and the whole curve, then for each kill: its point, and the curve of the resumed run."""
    points = _in_a_fork(base, folder / "whole", folder / "whole.json", at=0)["points"]
    _say(_read(folder / "whole.json"))
    for turn in range(kills):
        at = 1 + turn * (len(points) - 1) // max(kills - 1, 1)
        here = folder / str(at)
        _in_a_fork(base, here, folder / f"{at}-killed.json", at=at)
        checkpoint = last_whole_checkpoint(here / "checkpoints")
        _in_a_fork(base, here, folder / f"{at}.json", at=0)
        from_step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        _say({"at": at, "point": points[at - 1], "from": from_step} | _without_points(folder / f"{at}.json"))


def _say(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")


def _in_a_fork(base: Path, folder: Path, result: Path, *, at: int) -> dict[str, Any]:
    """Train or resume in `folder`; killed at the point of that number, unless it is 0."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _train(base, folder, result, at=at)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if at:
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"point {at}: was not killed, but ended with {status}")
        return {}
    if status != 0:
        raise SystemExit(f"{folder}: ended with {status}")
    return {"points": _read(result)["points"]}


def _train(base: Path, folder: Path, result: Path, *, at: int) -> None:
    task = make_task(base, folder, **KEYS)
    task = replace(task, resume_from=last_whole_checkpoint(task.checkpoints))
    points = Points(task.checkpoints, die, at=at) if at else Points(task.checkpoints)
    with watched(points):
        training = learn(task)
    result.write_text(
        json.dumps({"curve": curve(training.steps), "held_out": training.trained.held_out_loss, "points": points.names})
    )


def _without_points(path: Path) -> dict[str, Any]:
    return {name: value for name, value in _read(path).items() if name != "points"}


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
