"""The engine's processes, seen from outside: by the system's word, which one that hangs can't withhold.

Knows processes, not vLLM.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

DIE_WITH_PARENT = 1
"""Linux's PR_SET_PDEATHSIG."""
STOPPED = frozenset({psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP})


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of all of them together."""

    cpu_seconds: float
    is_halted: bool
    """Whether one is stopped, or one of the first is gone."""
    is_at_disk: bool


class Processes:
    """Some processes, and what they had started by now.

    Of those they started it is no news when one goes: compilers do. For its workers, vLLM's engine looks out itself.
    """

    def __init__(self, pids: Iterable[int | None]) -> None:
        self._first = [psutil.Process(pid) for pid in pids if pid is not None]
        self._others = [other for process in self._first for other in process.children(recursive=True)]

    def look(self) -> Look:
        """Cheap: two small files of /proc each."""
        first, others = (list(filter(None, map(_glance, some))) for some in (self._first, self._others))
        statuses = {status for status, _ in first + others}
        is_gone = len(first) < len(self._first)
        cpu_seconds = sum(seconds for _, seconds in first + others)
        return Look(cpu_seconds, is_gone or bool(statuses & STOPPED), psutil.STATUS_DISK_SLEEP in statuses)

    def kill(self) -> None:
        """End them all at once."""
        for process in (*self._first, *self._others):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


def end_with_parent() -> None:
    """Have this process killed when the one that started it ends, however that ends: nothing else would (Linux).

    Does nothing in a process that multiprocessing did not start.
    """
    parent = multiprocessing.parent_process()
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent.pid:
        os.kill(os.getpid(), signal.SIGKILL)  # it ended just before


def _glance(process: psutil.Process) -> tuple[str, float] | None:
    """Its status and what it has used of the processor; None if it is gone, or a zombie."""
    try:
        with process.oneshot():
            status, times = process.status(), process.cpu_times()
    except psutil.NoSuchProcess:
        return None
    return None if status == psutil.STATUS_ZOMBIE else (status, times.user + times.system)
