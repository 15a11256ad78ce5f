"""Trains in several processes: starts them, passes on what they tell, and hands signals to them.

The launching process plans, checks and publishes; it never joins them, and loads no library for it. They run in a
session of their own: a Ctrl-C at the terminal comes to this process alone, which asks the first of them to stop.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Final

from trainer import errors
from trainer.errors import Interrupted, TrainingError
from trainer.recipes.spread import Spread, Way, require_possible
from trainer.recipes.task import Task
from trainer.recipes.task_files import OUTCOME, PID, TOLD, Order, Outcome, from_line, write_order
from trainer.settings import environment_of_processes
from trainer.step import OnTold, Step

LOG: Final = "processes.log"
POLL_SECONDS: Final = 0.1
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def launch(task: Task, spread: Spread, *, out: Path, base_name: str, folder: Path) -> Outcome:
    """Carry the task out in several processes and save what was trained in `out`; `folder` is theirs to work in.

    Raises:
        JobError: the job can't be trained so; nothing was started.
        TrainingError: a process failed; its own words are in `folder`/processes.log.
        TrainerError: as the recipe raises it. Interrupted: a signal came, and the checkpoint is whole.
    """
    require_possible(task.job, spread)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_order(Order(task, out, base_name, os.getpid()), folder)
    (folder / TOLD).touch()

    # The processes, until the last is gone
    with (folder / LOG).open("wb") as log:
        started = subprocess.Popen(  # noqa: S603  — our own words
            _command(spread, folder),
            env=environment_of_processes(
                threads=max(1, (os.cpu_count() or 1) // spread.processes),
                uses_cpu=spread.config.distributed_type is Way.CPU,
            ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with _signals_to(folder / PID, started):
            _pass_on(started, folder / TOLD, task.listeners)

    return _outcome(folder)


def _command(spread: Spread, folder: Path) -> list[str]:
    worker = ["-m", "trainer.recipes.worker", str(folder)]
    count = str(spread.processes)
    if spread.config.distributed_type is Way.CPU:  # `accelerate launch` would want MPI for several processes
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, *worker]
    # Port 0: any that is free, so that two runs may share a machine.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(spread.config_file)]
    return [*launcher, "--num_processes", count, "--main_process_port", "0", *worker]


@contextmanager
def _signals_to(pid_file: Path, started: subprocess.Popen[bytes]) -> Iterator[None]:
    """The first signal asks for a checkpoint and the end; the second ends the processes at once."""
    if threading.current_thread() is not threading.main_thread():  # no place for handlers
        yield
        return
    relay = _Relay(pid_file, started)
    before = {number: signal.signal(number, relay) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class _Relay:
    """Hands a signal to the first of the processes; the others hear of it from that one."""

    def __init__(self, pid_file: Path, started: subprocess.Popen[bytes]) -> None:
        self._pid_file, self._started, self._has_asked = pid_file, started, False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        is_up = self._pid_file.exists()
        with suppress(ProcessLookupError):
            if is_up and not self._has_asked:
                os.kill(int(self._pid_file.read_text()), number)
            else:
                self._started.terminate()
        self._has_asked = True


def _pass_on(started: subprocess.Popen[bytes], told: Path, listeners: Sequence[OnTold]) -> None:
    try:
        with told.open() as file:
            while started.poll() is None:
                _tell_lines(file, listeners)
                with suppress(subprocess.TimeoutExpired):
                    started.wait(POLL_SECONDS)
            _tell_lines(file, listeners)
    finally:
        started.terminate()  # gone already, if all went well
        started.wait()


def _tell_lines(file: IO[str], listeners: Sequence[OnTold]) -> None:
    """Each whole line that was written since."""
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(start)
            return
        told = from_line(line)
        for listener in listeners:
            listener(told)


def _outcome(folder: Path) -> Outcome:
    path = folder / OUTCOME
    if not path.exists():
        raise TrainingError(f"A process of the training ended without a result; its own words are in {folder / LOG}.")
    stated = json.loads(path.read_bytes())
    if "error" not in stated:
        return Outcome(**stated | {"last": Step(**stated["last"])})
    if stated["error"] == Interrupted.__name__:
        raise Interrupted(stated["message"], signal_number=stated["signal_number"], step=stated["step"])
    kind = getattr(errors, stated["error"], TrainingError)
    raise kind(stated["message"], code=stated["code"])
