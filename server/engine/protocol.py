"""What the server needs of an engine, and nothing of how vLLM does it.

Invariant for every engine: a row of a batch is answered by the adapter its own request named, whatever else is in the
batch. `tests/test_engine_contract.py` holds the fake and vLLM to the same promises.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from starlette.types import ASGIApp


class Health(StrEnum):
    """Whether the engine can answer."""

    STARTING = "starting"
    READY = "ready"
    STALLED = "stalled"
    """It hangs. No engine says so of itself: server/liveness.py finds out."""
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Vitals:
    """What can be seen of an engine without asking it anything."""

    has_work: bool
    """Whether it has to make steps. An answer that is made and not read yet is no work."""
    stepped_at: float
    """When it last made a step, by `time.monotonic()`; 0 before the first."""
    cpu_seconds: float
    """Processor time that all its processes have used."""
    is_halted: bool = False
    """Whether one of its processes is stopped, or the engine's own is gone: it will make no step."""
    is_at_disk: bool = False
    """Whether one of its processes waits for a disk."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine holds and how much it takes."""

    base_name: str
    """The name that the inner app serves the base under."""
    max_model_len: int
    max_rank: int
    slots: int
    """Adapters that one batch can mix (`max_loras`)."""
    host_slots: int
    """Adapters that may be loaded at once, in host RAM (`max_cpu_loras`)."""


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter inside the engine. `int_id` is drawn afresh for each load and never used again."""

    name: str
    int_id: int
    path: Path


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one `generate` call so far: cumulative, over all `n` completions."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """A greedy continuation: token ids and, beside each, the natural log of its probability."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(slots=True)
class RequestContext:
    """What rides along with one request into the engine, past vLLM's own API layer."""

    adapter: LoadedAdapter | None
    label: str | None = None
    """What answers, as the answer's `model` names it: `acme/support@3`. None: the base."""
    priority: int = 0
    """The tenant's: lower goes first."""
    on_usage: Callable[[str, Usage], None] = field(default=lambda _call_id, _usage: None)
    """Called with each output as it passes: the engine's id of the generate call (a request may make several), and
    that call's usage so far."""


REQUEST: ContextVar[RequestContext | None] = ContextVar("lorikeet_request", default=None)
"""Set by the gateway around the call of `asgi`; read by the engine when the inner app generates."""


class EngineError(Exception):
    """The root of what an engine raises: AdapterRejectedError, EngineDeadError."""


class AdapterRejectedError(EngineError):
    """The engine could not load this adapter. Nothing of it is left loaded, and its id is burnt."""


class EngineDeadError(EngineError):
    """The engine is gone; the process must be restarted."""


class Engine(Protocol):
    """An inference engine that holds one base and many adapters."""

    @property
    def info(self) -> EngineInfo:
        """Fixed once `start` has returned."""
        ...

    @property
    def asgi(self) -> ASGIApp:
        """An OpenAI-compatible app that answers for the base; REQUEST says with which adapter. Fixed after `start`."""
        ...

    def openapi(self) -> dict[str, Any]:
        """The routes of `asgi` in OpenAPI's terms, of this release: what each takes. Fixed after `start`."""
        ...

    async def start(self) -> None:
        """Load the base; returns when the engine can answer. Called once, in the event loop that it will live in."""
        ...

    async def stop(self) -> None:
        """Give everything back. Safe to call on an engine that is dead or never started."""
        ...

    async def load(self, name: str, path: Path) -> LoadedAdapter:
        """Load the adapter in the folder `path` (absolute) into host RAM.

        `name` must be unique to these bytes (it keys the prefix cache together with `path`).

        Raises:
            AdapterRejectedError: it can't be loaded; nothing is left behind.
            EngineDeadError: the engine is gone.
        """
        ...

    async def unload(self, adapter: LoadedAdapter) -> None:
        """Drop it from host RAM and from its slot. No running request may use it. Never raises for a dead engine."""
        ...

    async def sample(self, prompt: str, adapter: LoadedAdapter | None, *, max_tokens: int) -> Sample:
        """Continue the raw text `prompt` greedily, past any stop token: for probes, self-checks and contract tests.

        Raises:
            EngineDeadError: the engine is gone.
        """
        ...

    def health(self) -> Health:
        """Cheap and immediate."""
        ...

    def vitals(self) -> Vitals:
        """Cheap and immediate. Only once it has started."""
        ...
