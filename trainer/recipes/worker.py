"""One of the processes of a run: `python -m trainer.recipes.worker FOLDER`, started by `launch`, once each by torchrun.

All train, and all take part in saving; the first one tells and writes. A signal that reaches the first reaches all,
since they agree on it after each step.
"""

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Final

from trainer.errors import Interrupted, TrainerError
from trainer.recipes.spread import share_out
from trainer.recipes.task_files import PID, TOLD, Order, Outcome, as_line, read_order, write_outcome
from trainer.settings import place_in_run, prepare_environment
from trainer.step import Told

LOOKS_SECONDS: Final = 1.0
"""Between looks at whether the process that launched this one is still there."""


def main(folder: Path) -> int:
    """Carry the order in `folder` out; the exit code."""
    prepare_environment()
    rank, processes = place_in_run()
    with (folder / TOLD).open("a") as told:
        order = read_order(folder, listeners=(_Teller(told),) if rank == 0 else ())
        _Follower(order.launcher_pid).start()
        if rank == 0:
            (folder / PID).write_text(str(os.getpid()))
        try:
            outcome = _carry_out(order, rank=rank, processes=processes)
        except TrainerError as error:
            if rank == 0:
                write_outcome(_as_stated(error), folder)
            # To torchrun an interruption is no failure, which it would answer by killing the others.
            return 0 if isinstance(error, Interrupted) else 1
        if rank == 0:
            write_outcome(outcome, folder)
    return 0


def _carry_out(order: Order, *, rank: int, processes: int) -> Outcome:
    from trainer.recipes.alone import train_and_save  # noqa: PLC0415  — after the environment is prepared

    task = replace(order.task, job=share_out(order.task.job, processes))
    return train_and_save(task, out=order.out, base_name=order.base_name, writes=rank == 0)


def _as_stated(error: TrainerError) -> dict[str, object]:
    stated: dict[str, object] = {"error": type(error).__name__, "code": error.code, "message": str(error)}
    if isinstance(error, Interrupted):
        stated |= {"signal_number": error.signal_number, "step": error.step}
    return stated


class _Teller:
    """Appends to told.jsonl what the launching process passes on."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def __call__(self, told: Told) -> None:
        self._file.write(as_line(told))
        self._file.flush()


class _Follower(threading.Thread):
    """Ends this process as SIGTERM does, with a whole checkpoint, when the one that launched it is gone."""

    def __init__(self, launcher_pid: int) -> None:
        super().__init__(daemon=True)
        self._launcher_pid = launcher_pid

    def run(self) -> None:
        """Look once a second."""
        while _is_alive(self._launcher_pid):
            time.sleep(LOOKS_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
