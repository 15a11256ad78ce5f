"""What the demos stand on: run a command, run a server, say what is being done."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from rich.console import Console

from adapters import Caller, ConflictError, RegistrySettings

HERE = Path(__file__).parent
LORIKEET = str(Path(sys.executable).parent / "lorikeet")
BASE = "smollm2-135m-instruct"
START_SECONDS = 240
console = Console(width=150, highlight=False)


def create_tenants(*tenants: str) -> None:
    """Each of them, unless it is there."""
    with RegistrySettings().open() as registry:
        for tenant in tenants:
            try:
                registry.tenants.create(Caller.operator(), tenant)
            except ConflictError:
                console.print(f"  {tenant} is there already")


@contextmanager
def step(title: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    console.print(f"\n[bold cyan]==>[/] {title}")
    started = time.monotonic()
    yield
    console.print(f"    [dim]{time.monotonic() - started:.1f} s[/]")


def lorikeet(*words: str) -> str:
    """Run a lorikeet command; its progress goes to the terminal, what it prints is shown and returned."""
    console.print(f"  $ lorikeet {' '.join(words)}", style="dim", markup=False, soft_wrap=True)
    done = subprocess.run([LORIKEET, *words], stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603  — our own command
    if done.returncode:
        sys.exit(done.returncode)
    if "--json" not in words and done.stdout:
        console.print(done.stdout.rstrip(), markup=False)
    return done.stdout


@contextmanager
def running_server(port: int, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`lorikeet serve` in a process of its own, ready; ended on the way out."""
    log = RegistrySettings().home / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen([LORIKEET, "serve", "--port", str(port), *options], stdout=output, stderr=output)  # noqa: S603
    try:
        with step("Start the server"):
            console.print(" ".join(["  $ lorikeet serve --port", str(port), *options]), style="dim")
            wait_until_ready(process, port, log)
        yield process
    finally:
        with step("Stop the server"):
            process.terminate()
            process.wait(timeout=60)


def wait_until_ready(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    """Poll /readyz; if the server ends or takes too long, show its log's end and give up."""
    deadline = time.monotonic() + START_SECONDS
    with console.status("loading the base model"):
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz").is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
    process.kill()
    sys.exit("the server did not start:\n" + "\n".join(log.read_text().splitlines()[-20:]))


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
