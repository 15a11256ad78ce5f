"""The parent of `lorikeet serve`, with a few lines of shell in the server's place."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from server import supervisor
from server.supervisor import Supervisor
from tests.server.world import wait_until

READY = (
    "import socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])"
)


class Supervised:
    """A supervisor over a script, which notes its pid at each start and then does what is told."""

    def __init__(self, folder: Path, *starts: str) -> None:
        """`starts`: what each start does; the last is for all that follow."""
        self._pids = folder / "pids"
        self._pids.touch()
        cases = "\n".join(f"if start == {number}:\n    {does}" for number, does in enumerate(starts[:-1]))
        script = folder / "server.py"
        script.write_text(
            "import os, signal, sys, time\n"
            f"pids = open({str(self._pids)!r}, 'a+')\n"
            "pids.seek(0)\n"
            "start = len(pids.readlines())\n"
            "print(os.getpid(), file=pids, flush=True)\n"
            f"def ready():\n    {READY}\n"
            f"{cases}\n{starts[-1]}\n"
        )
        run = (
            "import sys; from server.supervisor import Supervisor; "
            f"sys.exit(Supervisor([sys.executable, {str(script)!r}], pause_seconds=0.001).run())"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", run], stderr=subprocess.PIPE, text=True, cwd=Path(supervisor.__file__).parent.parent
        )

    @property
    def pids(self) -> list[int]:
        """Of the server, one for each start."""
        return [int(line) for line in self._pids.read_text().splitlines()]

    def ended(self) -> tuple[int, str]:
        """The exit code, and what was said."""
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said


STAYS = "time.sleep(60)"


def test_a_server_that_ends_cleanly_is_not_started_again(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "sys.exit(0)")
    assert supervised.ended() == (0, "")
    assert len(supervised.pids) == 1


@pytest.mark.parametrize("loss", ["sys.exit(75)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_lost_engine_or_a_killed_server_is_started_again(tmp_path: Path, loss: str) -> None:
    supervised = Supervised(tmp_path, loss, loss, "sys.exit(0)")
    code, said = supervised.ended()
    assert (code, len(supervised.pids), said.count("starts again")) == (0, 3, 2)


@pytest.mark.parametrize("code", [1, 2])
def test_what_must_be_put_right_by_hand_is_not_tried_again(tmp_path: Path, code: int) -> None:
    supervised = Supervised(tmp_path, f"sys.exit({code})")
    assert supervised.ended() == (code, "")
    assert len(supervised.pids) == 1


def test_an_engine_that_has_served_and_does_not_start_once_is_tried_again(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "ready(); sys.exit(75)", "sys.exit(1)", "sys.exit(0)")
    assert supervised.ended()[0] == 0
    assert len(supervised.pids) == 3


def test_five_starts_in_a_row_that_never_serve_are_enough(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "sys.exit(75)")
    code, said = supervised.ended()
    assert (code, len(supervised.pids)) == (75, 5)
    assert "giving up" in said


def test_one_that_serves_each_time_is_never_given_up(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, *["ready(); sys.exit(75)"] * 7, "sys.exit(0)")
    assert supervised.ended()[0] == 0
    assert len(supervised.pids) == 8


@pytest.mark.parametrize(
    ("sent", "stop"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGHUP, signal.SIGTERM)],
)
def test_a_stop_is_handed_on_and_the_servers_word_is_the_last(
    tmp_path: Path, sent: signal.Signals, stop: signal.Signals
) -> None:
    supervised = Supervised(tmp_path, f"signal.signal({int(stop)}, lambda *_: sys.exit(3)); ready(); {STAYS}")
    wait_until(lambda: len(supervised.pids) == 1 and handles(supervised.pids[0], stop))
    supervised.process.send_signal(sent)
    assert supervised.ended()[0] == 3
    assert len(supervised.pids) == 1


def test_pauses_grow_to_the_longest_and_no_further() -> None:
    pauses = list(map(Supervisor([]).pause_seconds, (0, 1, 2, 6, 5000)))
    assert pauses == [1, 2, 4, 60, 60]


def test_whoever_started_the_supervisor_is_told_that_the_server_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "outer"))
        told.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "outer"))
        supervised = Supervised(tmp_path, f"ready(); {STAYS}")
        assert told.recv(64) == b"READY=1"
        supervised.process.terminate()
        supervised.ended()


def test_a_stop_before_the_server_listens_is_a_clean_one(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, STAYS)
    wait_until(lambda: len(supervised.pids) == 1)
    supervised.process.terminate()
    assert supervised.ended()[0] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_server_ends_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, STAYS)
    wait_until(lambda: len(supervised.pids) == 1)
    supervised.process.kill()
    supervised.ended()
    wait_until(lambda: not is_running(supervised.pids[0]))


def test_the_supervisor_is_small() -> None:
    loaded = "import sys, server.supervisor; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-S", "-c", loaded], capture_output=True, text=True, check=True)
    foreign = {name for name in found.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert foreign - {"__main__"} == {"server", "server.supervisor"}


def handles(pid: int, number: int) -> bool:
    """Whether the process has a handler of its own for this signal."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) & (1 << (number - 1)))


def is_running(pid: int) -> bool:
    """A zombie is not."""
    try:
        os.kill(pid, 0)
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
