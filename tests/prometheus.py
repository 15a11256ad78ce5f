"""Debian's Prometheus for the tests: its programs are on the PATH, or where `make tools` unpacked them.

A server of it listens on a free port of 127.0.0.1 and keeps its samples in the folder that it is given.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final, Self

import httpx
import yaml

SECONDS: Final = 30
TOOLS: Final = Path(__file__).parents[1] / ".lorikeet" / "tools" / "bin"
LISTENS: Final = re.compile(r'msg="Listening on" address=(\S+)')


def why_there_is_none() -> str | None:
    """Why Prometheus can't run on this machine, or None."""
    missing = [name for name in ("prometheus", "promtool") if _find(name) is None]
    return f"no {' and no '.join(missing)}: 'make tools' fetches Debian's package" if missing else None


def promtool(*words: str | Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run `promtool` with these words; what it says is in `stdout` and `stderr`."""
    return subprocess.run([program("promtool"), *words], input=stdin, capture_output=True, check=False, timeout=SECONDS)


def program(name: str) -> Path:
    """Where `prometheus` or `promtool` is.

    Raises:
        RuntimeError: it is nowhere.
    """
    found = _find(name)
    if found is None:
        raise RuntimeError(why_there_is_none())
    return found


class Prometheus:
    """One server, from `config` (prometheus.yml as a mapping) until the `with` block ends."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder = folder
        self._log = folder / "prometheus.log"
        (folder / "prometheus.yml").write_text(yaml.safe_dump(dict(config)))
        self.url = ""
        self._client = httpx.Client(timeout=SECONDS)

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={self._folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._folder / 'samples'}",
                    "--storage.tsdb.retention.time=1h",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stdout=log,
                stderr=log,
                env={"PATH": os.defpath, "GOMAXPROCS": "1"},
                start_new_session=True,  # Ctrl-C is for the tests, which then stop it
            )
        try:
            self._wait(self._is_ready)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._process.kill()  # nobody reads its samples again
        self._process.wait(SECONDS)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an expression gives now: a list of `{"metric": {label: value}, "value": [time, text]}`.

        Raises:
            RuntimeError: Prometheus can't evaluate it; its own words.
        """
        answer = self._client.post(f"{self.url}/api/v1/query", data={"query": expression}).json()
        if answer["status"] != "success":
            raise RuntimeError(f"{expression}: {answer['error']}")
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def targets(self) -> list[dict[str, Any]]:
        """What it scrapes, each with `health` (up, down, unknown) and `lastError`."""
        active: list[dict[str, Any]] = self.get("targets")["activeTargets"]
        return active

    def get(self, path: str) -> Any:
        """The data of one of its other calls, as in `get("rules")`."""
        return self._client.get(f"{self.url}/api/v1/{path}").raise_for_status().json()["data"]

    def wait_for_scrape(self) -> None:
        """Return once all targets were scraped, and what they said can be asked for.

        Raises:
            RuntimeError: one could not be, with what Prometheus says of it.
        """
        self._wait(lambda: 0 < len(self.query("up")) == len(self.targets()))  # there are none at first
        if wrong := [target["lastError"] for target in self.targets() if target["health"] == "down"]:
            raise RuntimeError(json.dumps(wrong))

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(self._log.read_text())
        if not self.url and (listens := LISTENS.search(self._log.read_text())):
            self.url = f"http://{listens[1]}"
        try:
            return bool(self.url) and self._client.get(f"{self.url}/-/ready").is_success
        except httpx.TransportError:
            return False

    def _wait(self, claim: Callable[[], bool]) -> None:
        deadline = monotonic() + SECONDS
        while not claim():
            if monotonic() > deadline:
                raise RuntimeError(self._log.read_text())
            sleep(0.02)


def _find(name: str) -> Path | None:
    found = shutil.which(name) or shutil.which(name, path=str(TOOLS))
    return Path(found) if found else None
