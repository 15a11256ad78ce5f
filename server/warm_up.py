"""What is resident without being asked: what is pinned, always; and after a start, what was resident before.

No request waits for any of this or fails with it, and nothing is probed for it: what was never probed waits for its
first request. What is pinned is loaded before the server is ready; the rest afterwards, one by one, into free places,
while no request's adapter is loading.

    <home>/residency.json     {"residents": ["acme/support@3", …]}, the most recently used first. Not synced: one that
                              is broken or missing costs some loads, and is no error.
"""

import asyncio
import json
import logging
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from adapters import Base, Caller, LorikeetError, Reference, Registry, Target
from server.engine.protocol import AdapterRejectedError
from server.in_flight import InFlight
from server.leasing import Leases, key_of
from server.residency import Residency
from server.threads import Threads

FILE: Final = "residency.json"
EVERY_SECONDS: Final = 5.0
"""How often the registry is asked what is pinned (a command or another server may change it), and the file written."""
MOST_BYTES: Final = 1 << 20
"""Of a file of ours."""

log = logging.getLogger(__name__)


class WarmUp:
    """Runs for as long as it is entered, in the engine's loop. At most `most_pins` versions are kept by pins."""

    def __init__(
        self,
        registry: Registry,
        threads: Threads,
        leases: Leases,
        residency: Residency,
        in_flight: InFlight,
        *,
        base: Base,
        most_pins: int,
    ) -> None:
        self._registry = registry
        self._threads = threads
        self._leases = leases
        self._residency = residency
        self._in_flight = in_flight
        self._base = base
        self.most_pins: Final = most_pins
        self.pinning: Final = asyncio.Lock()
        """Held while somebody looks whether there is room for a pin, and sets it."""
        self._path = registry.home.expanduser() / FILE
        self._before: list[str] = []
        self._written: list[str] = []
        self._tried: frozenset[str] = frozenset()  # of what is pinned: each is loaded once, and then stays
        self._has_changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Load what is pinned.

        Raises:
            EngineDeadError: the engine died of it.
        """
        await self._keep_pinned()
        self._tasks = [asyncio.create_task(work) for work in (self._watch_pins(), self._restore_and_remember())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remember what is resident."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._remember()

    def nudge(self) -> None:
        """What is pinned, or what it means, may have changed."""
        self._has_changed.set()

    # --- what is pinned

    async def _watch_pins(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_SECONDS):
                    await self._has_changed.wait()
            self._has_changed.clear()
            await self._keep_pinned()

    async def _keep_pinned(self) -> None:
        try:
            versions = await self._threads.read(self._registry.adapters.pinned, Caller.server(), self._base)
        except LorikeetError:
            log.warning("pins not read: those that are known stay")
            return
        if len(versions) > self.most_pins:
            log.warning(
                "more is pinned than there is room for", extra={"pinned": len(versions), "room": self.most_pins}
            )
        targets = {key_of(version.target): version.target for version in versions[: self.most_pins]}
        self._residency.pin(targets.keys())
        self._tried &= targets.keys()
        for key, target in targets.items():
            if key not in self._tried and target.is_probed:
                self._tried |= {key}
                await self._load(target)

    async def _load(self, target: Target) -> None:
        try:
            async with self._leases.lease(target):
                pass
        except (LorikeetError, AdapterRejectedError):
            log.warning("pinned adapter not loaded: its first request tries again", extra={"version": target.label})

    # --- what was resident before

    async def _restore_and_remember(self) -> None:
        self._before = self._written = await self._threads.read(_read, self._path)
        found = [await self._find(label) for label in self._before[: self._residency.capacity]]
        self._leases.warm(target for target in found if target is not None)
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self._remember()

    async def _find(self, label: str) -> Target | None:
        """None: it is not there any more, may not be asked, or can't be looked for now."""
        try:
            name = Reference.parse(label)
            where = (name.tenant or "", name.adapter, int(name.selector))
            version = await self._threads.read(self._registry.versions.get, Caller.server(), *where)
        except (LorikeetError, ValueError):
            return None
        return version.target if version.state.is_servable else None

    async def _remember(self) -> None:
        """Write down what is resident, and what was before as far as there is room for it: it may be still to come.

        Not once the engine is lost: what it was lost over may be among those.
        """
        residents = [one for one in reversed(self._residency.snapshot()) if one.is_loaded]
        labels = [f"{one.labels.tenant}/{one.labels.adapter}@{one.labels.version}" for one in residents]
        before = [] if self._in_flight.is_lost else self._before
        others = (label for label in before if label not in labels)
        remembered = [*labels, *others][: self._residency.capacity]
        if remembered == self._written:
            return
        try:
            await self._threads.read(_write, self._path, remembered)
        except OSError as error:
            log.warning("what is resident was not written down: %s", error.strerror)
        else:
            self._written = remembered


def _read(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            residents = json.loads(file.read(MOST_BYTES))["residents"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [label for label in residents if isinstance(label, str)] if isinstance(residents, list) else []


def _write(path: Path, residents: Collection[str]) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(json.dumps({"residents": residents}))
    staged.replace(path)
