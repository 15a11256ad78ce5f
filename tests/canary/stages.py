"""Where canaries sing: a server with many tenants' adapters, each of which always says its own word.

Two stages with one face: the fake engine in this process, and `lorikeet serve` on the real one, on a tiny model whose
adapters were trained to say their words.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import httpx
import psutil

from adapters import Caller, Registry, Scope, folder_members, open_registry
from server.app import create_app
from server.engine.fake import FakeEngine
from server.settings import ServerSettings
from tests.builders import make_adapter_folder, make_base
from tests.live_server import LiveServer, free_port
from tests.task import write_task
from tests.tiny_model import make_tiny_checkpoint

TENANTS: Final = ("red", "green", "blue")
NAMES: Final = ("ant", "bee")
VERSIONS: Final = (1, 2)
SLOTS, HOST_SLOTS = 2, 5
"""Far fewer than there are adapters: they are evicted all the time."""
WORDS: Final = ("Aye.", "Nay.", "Well.", "Yes.", "No.", "Sure.", "Hm.", "Oh.", "So.", "Now.", "Ah.", "Ha.")
START_SECONDS: Final = 900
OPERATOR: Final = Caller.operator()
LORIKEET: Final = str(Path(sys.executable).parent / "lorikeet")


class Stage(Protocol):
    """A server that can be asked, and whose engine can be killed."""

    @property
    def url(self) -> str:
        """Without a trailing slash."""
        ...

    @property
    def keys(self) -> Mapping[str, str]:
        """A key of each tenant, to ask and to manage, and the platform's under `platform`."""
        ...

    def kill_engine(self) -> None:
        """It dies with all that runs; returns when the server answers again."""
        ...

    def process(self) -> psutil.Process:
        """The one whose memory and files are watched."""
        ...


def labels() -> list[str]:
    """`red/ant@1` and all the others."""
    return [f"{tenant}/{name}@{number}" for tenant in TENANTS for name in NAMES for number in VERSIONS]


class FakeStage:
    """The whole server on the fake engine. A killed engine takes its server with it; the registry stays."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self._registry = registry
        self._base = registry.bases.add(OPERATOR, make_base())
        self.keys = issue_keys(registry)
        for seed, label in enumerate(labels()):
            tenant, name = label.partition("@")[0].split("/")
            members = folder_members(make_adapter_folder(folder / f"{seed}", self._base, seed=seed))
            registry.versions.publish(OPERATOR, tenant, name, members, base=self._base.fingerprint)
            registry.aliases.promote(OPERATOR, tenant, name, 1)
        self.url = self._start()

    def kill_engine(self) -> None:
        """And start a new server, as the supervisor would."""
        self._live.call(_call(self._engine.kill))
        self.close()
        self.url = self._start()

    def close(self) -> None:
        """Stop the server."""
        self._live.__exit__(None, None, None)

    def process(self) -> psutil.Process:
        """This one: clients and all."""
        return psutil.Process()

    def _start(self) -> str:
        settings = ServerSettings(max_loras=SLOTS, max_cpu_loras=HOST_SLOTS)
        self._engine = engine = FakeEngine(self._base.name, slots=SLOTS, host_slots=HOST_SLOTS)
        self._live = LiveServer(
            lambda: create_app(settings, self._registry, engine, base=self._base, secret=b"secret" * 6)
        ).__enter__()
        return self._live.base_url


class RealStage:
    """`lorikeet serve` in processes of its own."""

    def __init__(self, home: Path) -> None:
        self._variables = os.environ | {  # noqa: TID251  — a user's shell
            "LORIKEET_HOME": str(home),
            "LORIKEET_KV_CACHE_MEMORY_BYTES": str(1 << 27),
        }
        self._folder = home.parent
        if not (home / "trained").exists():
            self._train(home)
        with open_registry(home) as registry:
            self.keys = issue_keys(registry)
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._start()

    def kill_engine(self) -> None:
        """kill -9 to vLLM's engine process; the server starts itself again."""
        engine = next(one for one in self._server.children(recursive=True) if "EngineCore" in " ".join(one.cmdline()))
        engine.kill()
        wait_until(lambda: not self._is_ready())
        wait_until(self._is_ready)

    def close(self) -> None:
        """Stop it as an operator would."""
        self._server.terminate()
        self._server.wait(60)

    def process(self) -> psutil.Process:
        """The one that listens."""
        children = [self._server, *self._server.children(recursive=True)]
        return next(one for one in children if any(c.status == "LISTEN" for c in one.net_connections("tcp")))

    def _start(self) -> None:
        options = ("--max-loras", SLOTS, "--max-cpu-loras", HOST_SLOTS, "--max-model-len", 512, "--port", self._port)
        log = (self._folder / "serve.log").open("ab")
        command = [LORIKEET, "serve", "--supervise", "--base", "tiny", *map(str, options)]
        self._server = psutil.Popen(command, env=self._variables, stdout=log, stderr=log)
        wait_until(self._is_ready)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).is_success
        except httpx.TransportError:
            return False

    def _train(self, home: Path) -> None:
        self._lorikeet("base", str(make_tiny_checkpoint(self._folder / "tiny")), "--name", "tiny")
        for tenant in TENANTS:
            self._lorikeet("adapters", "tenants", "create", tenant)
        for word, label in zip(WORDS, labels(), strict=True):
            name = label.partition("@")[0]
            folder = self._folder / label.replace("/", "-")
            folder.mkdir()
            job = write_task(folder, answer=word, rank=4, judge={"min_metrics": {"exact_match": 0.9}})
            trained = self._lorikeet("train", "run", str(job), "--publish", name, "--promote", "--json")
            print(label, word, json.loads(trained)["report"]["result"]["metrics"], file=sys.stderr)  # noqa: T201
        (home / "trained").touch()

    def _lorikeet(self, *words: str) -> str:
        return subprocess.run(
            [LORIKEET, *words], env=self._variables, stdout=subprocess.PIPE, text=True, check=True
        ).stdout


def issue_keys(registry: Registry) -> dict[str, str]:
    """A key for each tenant, and the platform's."""
    if not registry.tenants.list(OPERATOR):
        for tenant in TENANTS:
            registry.tenants.create(OPERATOR, tenant)
    both = frozenset({Scope.INFER, Scope.ADMIN})
    keys = {tenant: registry.keys.issue(OPERATOR, tenant, name="canary", scopes=both).secret for tenant in TENANTS}
    platform = registry.keys.issue(OPERATOR, None, name="canary", scopes=frozenset({Scope.PLATFORM}))
    return keys | {"platform": platform.secret}


@contextmanager
def fake_stage(folder: Path) -> Iterator[FakeStage]:
    """For as long as the block lasts."""
    with open_registry(folder / "home") as registry:
        stage = FakeStage(folder, registry)
        try:
            yield stage
        finally:
            stage.close()


@contextmanager
def real_stage(folder: Path) -> Iterator[RealStage]:
    """For as long as the block lasts; what was trained stays in the folder for the next time."""
    folder.mkdir(parents=True, exist_ok=True)
    stage = RealStage(folder / "home")
    try:
        yield stage
    finally:
        stage.close()


def wait_until(claim: Callable[[], bool]) -> None:
    """Ask every half second, and give up after START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while not claim():
        if time.monotonic() > deadline:
            sys.exit("the server did not come back")
        time.sleep(0.5)


async def _call(action: Callable[[], None]) -> None:
    action()
