"""Whether the engine lives: seen from its steps and its processes, and tried out while nobody asks anything.

With work in hand and no step made, what its processes do decides: one that is stopped or gone will make none; if none
has used the processor for `stall_seconds`, they wait for each other; if they compute, the step is a long one, and has
`step_seconds`. An idle engine is asked for a token of the base every `heartbeat_seconds`, so that ready means: one was
made lately. A verdict is for good: what is lost stays lost.
"""

import asyncio
import logging
from time import monotonic
from types import TracebackType
from typing import Final, Self

from server.engine.protocol import Engine, Health, Vitals
from server.errors import DrainingError, NotReadyError
from server.in_flight import InFlight, draining

LOOK_SECONDS: Final = 0.5
HALTED_LOOKS: Final = 2
"""A debugger's glance stops a process, too, for less than that."""
WORKING_SHARE: Final = 0.01
"""Of one core: what uses less of it is asleep, save for its timers."""
HEARTBEAT_PROMPT: Final = "a"

log = logging.getLogger(__name__)


class Liveness:
    """Use as `async with`, while the engine is up: looks at it, and tells `in_flight` of its loss."""

    def __init__(
        self,
        engine: Engine,
        in_flight: InFlight,
        *,
        stall_seconds: float,
        step_seconds: float,
        heartbeat_seconds: float,
    ) -> None:
        self._engine = engine
        self._in_flight = in_flight
        self._stall_seconds = stall_seconds
        self._step_seconds = step_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._stepped_at = 0.0  # the engine's newest step; at first, its start
        self._looked_at = 0.0
        self._halted_looks = 0
        self._quiet_seconds = 0.0  # with work in hand and no step
        self._asleep_since = 0.0  # … of these, when it last computed
        self._cpu_seconds = 0.0  # … and what it had used by then
        self._beat_at = 0.0
        self._heartbeat: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._stepped_at = self._looked_at = monotonic()
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        tasks = [task for task in (self._watching, self._heartbeat) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def require_ready(self) -> None:
        """Raises NotReadyError or DrainingError, which say why.

        Unless a token was made lately, or the engine computes, for no longer than a step may take.
        """
        health = self._engine.health()
        if self._in_flight.is_draining:
            raise draining()
        if self._in_flight.is_lost or health is not Health.READY:
            raise NotReadyError(f"The engine is {Health.STALLED if health is Health.READY else health}.")
        vitals = self._engine.vitals()
        seconds = monotonic() - max(self._stepped_at, vitals.stepped_at)
        is_computing = vitals.has_work and self._quiet_seconds - self._asleep_since < self._stall_seconds
        longest = self._step_seconds if is_computing else 0.0
        if seconds > max(self._heartbeat_seconds + self._stall_seconds, longest):
            raise NotReadyError(f"The engine is {Health.STALLED}: it made no token for {seconds:.0f} seconds.")

    def is_ready(self) -> bool:
        """The same, as a word."""
        try:
            self.require_ready()
        except (NotReadyError, DrainingError):
            return False
        return True

    def look(self, now: float) -> None:
        """One look at the engine."""
        health = self._engine.health()
        if health is Health.READY:
            vitals = self._engine.vitals()
            health = self._judge(vitals, now)
            self._beat_if_idle(vitals, now)
        if health in {Health.DEAD, Health.STALLED} and not self._in_flight.is_lost:
            log.error("engine lost", extra={"health": str(health), "quiet_seconds": round(self._quiet_seconds, 1)})
            self._in_flight.lose()

    def _judge(self, vitals: Vitals, now: float) -> Health:
        # No more than two looks' time: if this process itself was stopped, the engine may well have been, too.
        elapsed, self._looked_at = min(now - self._looked_at, 2 * LOOK_SECONDS), now
        self._halted_looks = self._halted_looks + 1 if vitals.is_halted else 0
        if self._halted_looks >= HALTED_LOOKS:
            return Health.STALLED
        if not vitals.has_work or vitals.stepped_at > self._stepped_at:
            self._stepped_at = max(self._stepped_at, vitals.stepped_at)
            self._quiet_seconds = self._asleep_since = 0.0
            self._cpu_seconds = vitals.cpu_seconds
            return Health.READY
        self._quiet_seconds += elapsed
        if vitals.is_at_disk or vitals.cpu_seconds - self._cpu_seconds > WORKING_SHARE * self._stall_seconds:
            self._asleep_since, self._cpu_seconds = self._quiet_seconds, vitals.cpu_seconds
        is_asleep = self._quiet_seconds - self._asleep_since >= self._stall_seconds
        return Health.STALLED if is_asleep or self._quiet_seconds >= self._step_seconds else Health.READY

    async def _watch(self) -> None:
        while not self._in_flight.is_lost:
            self.look(monotonic())
            await asyncio.sleep(LOOK_SECONDS)

    def _beat_if_idle(self, vitals: Vitals, now: float) -> None:
        if not vitals.has_work and now - max(self._stepped_at, self._beat_at) >= self._heartbeat_seconds:
            self._beat_at = now
            self._heartbeat = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        """One token of the base. That it never comes is seen as with any request: it is work in hand."""
        try:
            async with asyncio.timeout(self._step_seconds):
                await self._engine.sample(HEARTBEAT_PROMPT, None, max_tokens=1)
        except Exception:  # an edge: nobody awaits this; readiness ends if it goes on
            log.exception("heartbeat failed")
