"""llmcompressor in an environment of its own: a folder of packages laid before ours, for one script in a process.

Not a virtual environment: torch and all that both can share is this environment's own, so that 180 MB come instead of
1.2 GB, and the build of torch is the one that training runs on. Invariant: an environment is whole or not there.
"""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import FrameType
from typing import Any, Final, Protocol

from adapters import sync_to_disk
from trainer.errors import ArtifactError
from trainer.progress import LINE_SECONDS, Narrator

REQUIREMENTS: Final = Path(__file__).with_name("quantize_requirements.txt")
SCRIPT: Final = Path(__file__).with_name("quantize_script.py")
_NOISE: Final = ("WARNING", "[notice]")


@dataclass(frozen=True, slots=True)
class Request:
    """What the script is asked to do, as JSON."""

    model: str
    out: str
    algorithm: str
    weights: Mapping[str, Any]
    activations: Mapping[str, Any] | None
    ignore: tuple[str, ...]
    samples: tuple[tuple[int, ...], ...]
    """Token ids."""


class Workshop(Protocol):
    """Where a model is quantised."""

    def prepare(self, narrator: Narrator) -> None:
        """Make ready what can be made ready before the model is known. Raises ArtifactError."""

    def run(self, request: Request, narrator: Narrator) -> None:
        """Write `request.out`. Raises ArtifactError."""


class LlmCompressor:
    """The workshop under `home`, where Lorikeet keeps its things."""

    def __init__(self, home: Path) -> None:
        self._packages = home / "environments" / f"llmcompressor-{_digest()[:16]}"

    def prepare(self, narrator: Narrator) -> None:
        """Install what REQUIREMENTS pins, unless it was."""
        if self._packages.is_dir():
            return
        narrator.say("llmcompressor gets an environment of its own, once (about 180 MB)")
        with narrator.step(f"making {self._packages.name}"):
            make(self._packages, lambda folder: _install(folder, narrator))

    def run(self, request: Request, narrator: Narrator) -> None:
        """Run the script. What it prints is shown only where it fails."""
        with TemporaryDirectory(prefix="lorikeet-quantize-") as place:
            asked = Path(place) / "request.json"
            asked.write_text(json.dumps(asdict(request)), encoding="utf-8")
            command = [sys.executable, "-I", str(SCRIPT), str(self._packages), str(asked)]
            code, last = _watch(command, Path(place) / "log", narrator)
        if code:
            raise ArtifactError(f"llmcompressor could not quantise the model: {last or f'it ended with {code}'}")


def make(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make `folder` of what `fill` writes: staged beside it, so that one that was not finished is never used.

    One process at a time makes any; a second one waits, and finds it made.
    """
    try:
        with _alone_in(folder.parent):
            # What is staged here is nobody's: its maker died.
            for left in folder.parent.glob(".staging-*"):
                shutil.rmtree(left, ignore_errors=True)
            if not folder.is_dir():
                _make_alone(folder, fill)
    except OSError as error:
        raise ArtifactError(f"The environment can't be made: {error.strerror or error}.") from error


def _make_alone(folder: Path, fill: Callable[[Path], None]) -> None:
    staging = Path(mkdtemp(prefix=".staging-", dir=folder.parent))
    try:
        fill(staging)
        staging.chmod(0o755)
        for path in (*staging.rglob("*"), staging):
            if not path.is_symlink():
                sync_to_disk(path)
        staging.rename(folder)
        sync_to_disk(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # gone already, if all went well


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """The lock is the kernel's, and goes with its holder, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(folder: Path, narrator: Narrator) -> None:
    """Without dependencies, so that pip brings no second torch.

    No package of this shell or user has a say in what the pins come to (`-I`); an index of theirs (PIP_INDEX_URL, a
    pip.conf) has.
    """
    options = [
        "--no-deps",
        "--target",
        str(folder),
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
    ]
    with TemporaryDirectory(prefix="lorikeet-pip-") as place:
        command = [sys.executable, "-I", "-m", "pip", "install", *options, "-r", str(REQUIREMENTS)]
        code, last = _watch(command, Path(place) / "log", narrator)
    if code:
        by_hand = f"python -I -m pip install --no-deps --target {folder.with_name('packages')} -r {REQUIREMENTS}"
        raise ArtifactError(
            f"pip could not install llmcompressor: {last or f'it ended with {code}'} It needs the package index once; "
            f"to see what is wrong, run `{by_hand}`."
        )


def _watch(command: list[str], log: Path, narrator: Narrator) -> tuple[int, str]:
    """Run it, and say every few seconds that it goes on. Its exit code, and the last line of what it said."""
    started = said = time.monotonic()
    with log.open("wb") as output, _ended(command, output) as process:
        while True:
            try:
                code = process.wait(LINE_SECONDS / 5)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() - said >= LINE_SECONDS:
                    said = time.monotonic()
                    narrator.say(f"… {said - started:.0f} s: {_last_line(log)[:100]}")
    return code, _last_line(log)


@contextmanager
def _ended(command: list[str], output: Any) -> Iterator["subprocess.Popen[bytes]"]:  # noqa: ANN401  — a file
    """The process and what it started, none of which outlives the block: not at SIGTERM, either."""
    with (
        _leaving_at_sigterm(),
        subprocess.Popen(  # noqa: S603  — our own interpreter and words
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:  # its group is its own only as long as it lives
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _leaving_at_sigterm() -> Iterator[None]:
    """SIGTERM leaves the block as an exception does, so that what it holds is given back; then the process ends."""
    if threading.current_thread() is not threading.main_thread():  # no place for handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _last_line(log: Path) -> str:
    """What a progress bar said last counts as a line."""
    text = log.read_bytes()[-4000:].decode("utf-8", "replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(_NOISE)]
    return lines[-1] if lines else ""


def _digest() -> str:
    """Over what decides whether an environment fits: the pins, this Python, and the torch that it shares."""
    parts = (REQUIREMENTS.read_bytes(), sys.version.encode(), version("torch").encode(), sys.prefix.encode())
    return hashlib.sha256(b"\n".join(parts)).hexdigest()
