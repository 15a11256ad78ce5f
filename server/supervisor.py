"""The small parent of `lorikeet serve`: starts the server again when its engine was lost, or when it was killed.

Run as a file, so that it is small: `python -P server/supervisor.py COMMAND…`. Imports nothing but the standard library.

The server tells it that it is ready as it would tell systemd: READY=1 to NOTIFY_SOCKET; and it hands that on, if it
was given such a socket itself. The server ends with it, also when it is killed (Linux).
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

ENGINE_FAILED = 1
"""The server's exit code when its engine did not start."""
CUT_OFF = 3
"""… when it was stopped, and requests still ran when its patience ended."""
ENGINE_LOST = 75
"""… when the engine died or hung: only a new process mends that."""
GIVES_UP_AFTER = 5
"""Starts in a row after which it never became ready."""
LONGEST_PAUSE_SECONDS = 60.0
STEADY_SECONDS = 60.0
"""What has served for this long has its next pauses begin anew."""
GLANCE_SECONDS = 0.2
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""A terminal that is closed says SIGHUP. The server knows the other two."""
MOST_DOUBLINGS = 16
"""Of the pause: far beyond the longest."""
DIE_WITH_PARENT = 1
"""Linux's PR_SET_PDEATHSIG."""


def supervise(argv: Sequence[str]) -> None:
    """Become the supervisor of this very command: it runs as a child, with `--no-supervise`. Does not return."""
    server = [sys.executable, *argv, "--no-supervise"]
    os.execv(sys.executable, [sys.executable, "-P", __file__, *server])  # noqa: S606  — no shell is wanted


class Supervisor:
    """Runs one command, again and again."""

    def __init__(self, command: Sequence[str], *, pause_seconds: float = 1.0) -> None:
        self._command = command
        self._first_pause_seconds = pause_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._asked: list[int] = []  # the signals to stop that came
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before there is a fork

    def run(self) -> int:
        """Until it is stopped, or nothing more can be done. The exit code, 0 if the server was stopped cleanly."""
        for stop in STOPS:
            if stop != signal.SIGHUP or signal.getsignal(stop) != signal.SIG_IGN:  # nohup's word holds
                signal.signal(stop, self._forward)
        failures = pauses = 0
        has_ever_served = False
        while True:
            began = time.monotonic()
            code, has_served = self._run_once()
            has_ever_served = has_ever_served or has_served
            failures = 0 if has_served else failures + 1
            if has_served and time.monotonic() - began >= STEADY_SECONDS:
                pauses = 0
            if self._asked or not self._is_mended_by_a_start(code, has_ever_served=has_ever_served):
                return 0 if self._asked and -code in STOPS else _exit_code(code)
            if failures >= GIVES_UP_AFTER:
                _say(f"the server did not become ready {failures} times in a row: giving up")
                return _exit_code(code)
            pause_seconds = self.pause_seconds(pauses)
            pauses += 1
            _say(f"the server ended ({_words(code)}); it starts again in {pause_seconds:g} s")
            self._pause(pause_seconds)
            if self._asked:
                return 0

    def pause_seconds(self, pauses: int) -> float:
        """Before the next start, after so many pauses."""
        return min(LONGEST_PAUSE_SECONDS, self._first_pause_seconds * 2.0 ** min(pauses, MOST_DOUBLINGS))

    def _run_once(self) -> tuple[int, bool]:
        """The exit code, and whether it has been ready."""
        with TemporaryDirectory(prefix="lorikeet-") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            path = str(Path(folder) / "notify")
            told.bind(path)
            told.settimeout(GLANCE_SECONDS)
            self._child = subprocess.Popen(  # noqa: S603  — our own command
                self._command,
                env=os.environ | {"NOTIFY_SOCKET": path},
                process_group=0,  # a terminal's Ctrl-C reaches it once, through us
                preexec_fn=self._die_with_parent,  # noqa: PLW1509  — there is one thread here
            )
            if self._asked:
                self._child.terminate()
            has_served = False
            while self._child.poll() is None and not has_served:
                has_served = _is_told(told)
            if has_served:
                tell_ready(os.environ.get("NOTIFY_SOCKET"))
            code = self._child.wait()
            self._child = None
            return code, has_served or _is_told(told)

    def _die_with_parent(self) -> None:
        if self._libc is not None:
            self._libc.prctl(DIE_WITH_PARENT, signal.SIGKILL)

    @staticmethod
    def _is_mended_by_a_start(code: int, *, has_ever_served: bool) -> bool:
        """An engine that failed at its very first start has something to be put right by hand."""
        return code == ENGINE_LOST or code < 0 or (code == ENGINE_FAILED and has_ever_served)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        number = signal.SIGTERM if number == signal.SIGHUP else number
        self._asked.append(number)
        if self._child is not None:
            self._child.send_signal(number)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._asked and time.monotonic() < end:
            time.sleep(min(GLANCE_SECONDS, seconds))


def tell_ready(address: str | None) -> None:
    """As systemd wants it told: by a datagram to its socket, if it gave one."""
    if address is None:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection, suppress(OSError):
        connection.sendto(b"READY=1", address.replace("@", "\0", 1) if address.startswith("@") else address)


def _is_told(told: socket.socket) -> bool:
    try:
        return bool(told.recv(64))
    except TimeoutError:
        return False


def _exit_code(code: int) -> int:
    return 128 - code if code < 0 else code


def _words(code: int) -> str:
    if code == ENGINE_LOST:
        return "its engine was lost"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _say(words: str) -> None:
    print(f"lorikeet: {words}", file=sys.stderr, flush=True)  # noqa: T201  — its one way to speak


if __name__ == "__main__":
    sys.exit(Supervisor(sys.argv[1:]).run())
