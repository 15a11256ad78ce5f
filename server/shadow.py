"""Shadow traffic: a version gets a copy of a share of an alias's requests, and nobody sees its answers.

Invariant: no answer waits for a copy, fails with it or is changed by it. A copy begins only when there is room that
nobody needs, ends as soon as somebody has to wait, and counts in series of its own: in no quota, rate, bill or ledger.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256
from http import HTTPStatus
from typing import Final

from anyio import CancelScope
from starlette.types import Message, Receive, Scope, Send

from adapters import Caller, LorikeetError, Registry, Shadow, Target
from server.asked import Asked
from server.engine.protocol import REQUEST, Engine, EngineError, LoadedAdapter, RequestContext, Usage
from server.errors import OverloadedError, status_of
from server.in_flight import InFlight
from server.leasing import Leases, name_of
from server.metrics import Labels, Metrics
from server.shares import LAST, Asker
from server.threads import Threads
from server.turns import Turns

MAX_SECONDS: Final = 120.0
"""A copy that takes longer is cut."""
END_SECONDS: Final = 5.0
"""For the engine's app to see that nobody listens any more; and again, to end when it is cancelled."""
STREAM_FIELDS: Final = frozenset({"stream", "stream_options"})


class ShadowOutcome(StrEnum):
    """How a copy ended."""

    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"
    DROPPED = "dropped"
    """There was no room that nobody needed."""
    CUT = "cut"
    """Somebody needed its room, it took too long, or the server stopped."""


class NoSpareRoomError(Exception):
    """Never seen by a client: the copy is dropped."""


@dataclass(frozen=True, slots=True)
class Original:
    """The request that is copied."""

    caller: Caller
    target: Target
    asked: Asked
    request_id: str

    @property
    def shadow(self) -> Shadow | None:
        """That gets a copy of this request: drawn by its id."""
        shadow = self.target.shadow
        if shadow is None or self.asked.sequences > 1:
            return None
        drawn = int.from_bytes(sha256(self.request_id.encode()).digest()[:8], "big")
        return shadow if drawn % 100 < shadow.percent else None


class Shadows:
    """One server's copies, while they run."""

    def __init__(
        self,
        registry: Registry,
        threads: Threads,
        engine: Engine,
        leases: Leases,
        turns: Turns,
        metrics: Metrics,
        in_flight: InFlight,
    ) -> None:
        self._registry = registry
        self._threads = threads
        self._engine = engine
        self._leases = leases
        self._turns = turns
        self._metrics = metrics
        self._in_flight = in_flight
        self._copies: dict[asyncio.Task[None], _Copy] = {}

    def copy(self, original: Original, inner: Callable[[Asked, str], tuple[Scope, bytes]]) -> None:
        """Send a copy on its way, if this request is drawn.

        `inner` makes the scope and the body for the engine's app, from what is asked and an id.
        """
        shadow = original.shadow
        if shadow is None or self._in_flight.is_draining:
            return
        if not self._turns.has_spare_room:
            target = original.target
            self._count(Labels(target.tenant, target.adapter, str(shadow.version)), ShadowOutcome.DROPPED)
            return
        fields = {name: value for name, value in original.asked.fields.items() if name not in STREAM_FIELDS}
        copied = replace(original, asked=replace(original.asked, fields=fields))
        copy = _Copy(*inner(copied.asked, f"{original.request_id}-shadow"))
        # Without the request's context: its log line and its trace are its own.
        task = asyncio.create_task(self._run(copied, shadow, copy), context=Context())
        self._copies[task] = copy
        task.add_done_callback(self._copies.pop)

    def give_way(self) -> None:
        """Somebody has to wait: end all copies."""
        for task, copy in self._copies.items():
            if copy.is_answered_by_engine:
                copy.gone.set()
            else:
                task.cancel()

    async def close(self) -> None:
        """End all copies, and wait until they have given everything back."""
        tasks = list(self._copies)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, original: Original, shadow: Shadow, copy: "_Copy") -> None:
        target = original.target
        labels = Labels(target.tenant, target.adapter, str(shadow.version))
        began, outcome = self._metrics.clock(), ShadowOutcome.CUT
        try:
            async with asyncio.timeout(MAX_SECONDS):
                outcome = await self._answer(original, shadow, copy)
        except (NoSpareRoomError, OverloadedError):
            outcome = ShadowOutcome.DROPPED
        except TimeoutError:
            outcome = ShadowOutcome.CUT
        except (LorikeetError, EngineError) as error:
            outcome = _outcome_of(status_of(error))
        except Exception:  # noqa: BLE001  — the edge of a task that nobody waits for, and vLLM raises plain ones
            outcome = ShadowOutcome.FAILED
        finally:
            self._count(labels, outcome)
            self._measure(labels, copy, self._metrics.clock() - began)

    async def _answer(self, original: Original, shadow: Shadow, copy: "_Copy") -> ShadowOutcome:
        target = original.target
        name = f"{target.tenant}/{target.adapter}@{shadow.version}"
        found = await self._threads.read(self._registry.resolve, original.caller, name)
        asker = Asker(
            tenant=f"shadow of {original.caller.tenant}",  # no tenant's name: what it takes is charged to nobody
            adapter=name_of(found),
            prompt_tokens=original.asked.likely_prompt_tokens,
            max_tokens=original.asked.max_tokens,
            priority=LAST,
        )
        if not self._turns.has_spare_room:
            raise NoSpareRoomError("Somebody needs the room.")
        with self._in_flight.until_ended():
            async with self._turns.turn(asker, on_wait=_refuse_to_wait), self._leases.lease(found) as adapter:
                return await copy.ask(self._engine, adapter, found.label)

    def _count(self, labels: Labels, outcome: ShadowOutcome) -> None:
        self._metrics.shadow_requests.labels(*self._metrics.bounded(labels), outcome.value).inc()

    def _measure(self, labels: Labels, copy: "_Copy", seconds: float) -> None:
        bounded = self._metrics.bounded(labels)
        for kind, tokens in (("prompt", copy.prompt_tokens), ("completion", copy.completion_tokens)):
            self._metrics.shadow_tokens.labels(*bounded, kind).inc(tokens)
        if copy.status == HTTPStatus.OK:
            self._metrics.shadow_seconds.labels(*bounded).observe(seconds)


class _Copy:
    """One copy's ends of the engine's app: it is asked once, and its answer is thrown away."""

    def __init__(self, scope: Scope, body: bytes) -> None:
        self._scope = scope
        self._messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        self._usage: dict[str, Usage] = {}
        self.status = 0
        self.gone = asyncio.Event()
        self.is_answered_by_engine = False

    @property
    def prompt_tokens(self) -> int:
        """As many as the engine has read."""
        return sum(usage.prompt_tokens for usage in self._usage.values())

    @property
    def completion_tokens(self) -> int:
        """As many as the engine has made."""
        return sum(usage.completion_tokens for usage in self._usage.values())

    async def ask(self, engine: Engine, adapter: LoadedAdapter, label: str) -> ShadowOutcome:
        """How it was answered. When it is cut, the engine's app is let see a hang-up: it ends what it has begun."""
        REQUEST.set(RequestContext(adapter, label, LAST, on_usage=self._usage.__setitem__))
        self.is_answered_by_engine = True
        answering = asyncio.create_task(_call(engine, self._scope, self._receive, self._send))
        leaving = asyncio.create_task(self.gone.wait())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            self.gone.set()
            with CancelScope(shield=True):  # until the engine has let go, the copy holds its turn and its lease
                await asyncio.wait({answering}, timeout=END_SECONDS)
                answering.cancel()
                await asyncio.wait({answering}, timeout=END_SECONDS)
        if answering.done() and not answering.cancelled() and answering.exception() is not None:
            return ShadowOutcome.FAILED
        return _outcome_of(self.status) if self.status else ShadowOutcome.CUT

    async def _receive(self) -> Message:
        if self._messages:
            return self._messages.pop()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self.gone.is_set():
            self.status = message["status"]


async def _call(engine: Engine, scope: Scope, receive: Receive, send: Send) -> None:
    await engine.asgi(scope, receive, send)


def _refuse_to_wait() -> None:
    raise NoSpareRoomError("It would have to wait.")


def _outcome_of(status: int) -> ShadowOutcome:
    if status < HTTPStatus.BAD_REQUEST:
        return ShadowOutcome.OK
    return ShadowOutcome.REFUSED if status < HTTPStatus.INTERNAL_SERVER_ERROR else ShadowOutcome.FAILED
