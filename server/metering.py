"""What one request used: tokens as they pass, the times to the first of them and to the end, and how it ended.

Counts each request exactly once, however it ends, and each token once, however often it is reported: also those that
the engine made after the client had gone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from http import HTTPStatus
from itertools import product
from typing import Protocol

from starlette.requests import ClientDisconnect

from adapters import LorikeetError
from server.engine.protocol import Usage
from server.errors import NotReadyError, status_of
from server.logs import note
from server.metrics import KeyLabels, Labels, Metrics
from server.series import Series
from server.shares import Turn

BASE = "base"
"""The adapter label of requests to the base itself; no adapter may have this name."""


REJECTIONS = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"
    CLIENT_GONE = "client_gone"

    @classmethod
    def of_status(cls, status: int) -> "Outcome":
        """The outcome of an answer that was sent whole."""
        return cls.OK if status < 400 else cls.REFUSED if status < 500 else cls.FAILED  # noqa: PLR2004  — HTTP's classes


class Book(Protocol):
    """Where what a request used is written down, besides the metrics: the same numbers."""

    def used(self, labels: Labels, prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> None:
        """So many tokens more."""
        ...

    def answered(self, labels: Labels, first_token_seconds: float) -> None:
        """Its first token has come, so long after its arrival."""
        ...

    def ended(self, labels: Labels, seconds: float, *, has_failed: bool, is_aborted: bool) -> None:
        """One request, answered with an error or not, or left by its client."""
        ...


class Meter:
    """One request's. `labels` and `outcome` are set as they become known, `take` once it is let in."""

    def __init__(self, metrics: Metrics, labels: Labels, key_id: str, book: Book | None) -> None:
        self.outcome = Outcome.FAILED
        self.labels = labels
        self.take: Callable[[int], None] | None = None
        """Told of all tokens, as they pass."""
        self._key_labels = KeyLabels(labels.tenant, key_id)
        self._book = book
        self._turn: Turn | None = None
        self._metrics = metrics
        self._began = metrics.clock()
        self._has_answered = False
        self._calls: dict[str, _Call] = {}
        self._shown: tuple[Series, Series] | None = None
        self._shown_for = labels

    def begin(self, turn: Turn) -> None:
        """The request's turn has come; its next one, if that was for nothing."""
        self._turn = turn
        tenant = self._series()[0].labels[0]
        self._metrics.queue_seconds.labels(tenant).observe(turn.waited_seconds)

    def on_usage(self, call_id: str, usage: Usage) -> None:
        """Count what `usage` adds to what this generate call had used before. Takes some microseconds."""
        call = self._calls.get(call_id)
        if call is None:
            call = self._calls[call_id] = _Call()
        prompt_tokens, completion_tokens, cached_tokens = call.advance(usage)
        now = self._metrics.clock()
        for series in self._series():
            series.used_at = now
            series.prompt_tokens += prompt_tokens
            series.completion_tokens += completion_tokens
            series.cached_tokens += cached_tokens
            if completion_tokens and call.last_token_at is not None:
                series.between_tokens.observe(now - call.last_token_at)
        self._tell(prompt_tokens, completion_tokens, cached_tokens)
        if completion_tokens:
            call.last_token_at = now
            if not self._has_answered:
                self._answer(now - self._began)

    def finish(self) -> None:
        """Count the request."""
        self._note()
        seconds = self._metrics.clock() - self._began
        for series in self._series():
            series.requests[self.outcome.value] += 1
            series.request.observe(seconds)
        if self._book is not None:
            has_failed = self.outcome in {Outcome.REFUSED, Outcome.FAILED}
            is_aborted = self.outcome is Outcome.CLIENT_GONE
            self._book.ended(self.labels, seconds, has_failed=has_failed, is_aborted=is_aborted)

    def _note(self) -> None:
        """For its line in the log, and its span."""
        calls = self._calls.values()
        _, adapter, version = self.labels
        note(
            outcome=self.outcome.value,
            adapter=(f"{adapter}@{version}" if version else adapter) or None,
            prompt_tokens=sum(call.prompt_tokens for call in calls),
            completion_tokens=sum(call.completion_tokens for call in calls),
            cached_tokens=sum(call.cached_tokens for call in calls),
        )

    def _tell(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> None:
        """All who count besides the metrics."""
        if self.take is not None:
            self.take(prompt_tokens + completion_tokens)
        if self._turn is not None:
            self._turn.use(prompt_tokens, completion_tokens)
        if self._book is not None:
            self._book.used(self.labels, prompt_tokens, completion_tokens, cached_tokens)

    def _answer(self, seconds: float) -> None:
        self._has_answered = True
        for series in self._series():
            series.first_token.observe(seconds)
        if self._book is not None:
            self._book.answered(self.labels, seconds)

    def _series(self) -> tuple[Series, Series]:
        """Where this request counts now: by what answers it, and by its key."""
        shown = self._shown
        if shown is None or self._shown_for is not self.labels or not (shown[0].is_shown and shown[1].is_shown):
            self._shown_for = self.labels
            shown = self._metrics.sets.find(self.labels), self._metrics.key_sets.find(self._key_labels)
            self._shown = shown
            for series, outcome in product(shown, Outcome):
                series.requests[outcome.value] += 0  # Prometheus sees a first failure only if it saw none before
        return shown


class _Call:
    """What one generate call has used so far: the most that was reported, and when its last token came."""

    __slots__ = ("cached_tokens", "completion_tokens", "last_token_at", "prompt_tokens")

    def __init__(self) -> None:
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = 0
        self.last_token_at: float | None = None

    def advance(self, usage: Usage) -> tuple[int, int, int]:
        """What `usage` adds: to the prompt, the answer, and what of the prompt was cached."""
        prompt_tokens = max(0, usage.prompt_tokens - self.prompt_tokens)
        completion_tokens = max(0, usage.completion_tokens - self.completion_tokens)
        cached_tokens = max(0, usage.cached_tokens - self.cached_tokens)
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self.cached_tokens += cached_tokens
        return prompt_tokens, completion_tokens, cached_tokens


@contextmanager
def metered(metrics: Metrics, tenant: str, key_id: str = "", book: Book | None = None) -> Iterator[Meter]:
    """Measure the request inside the block. What it raises decides the outcome, else whoever set `meter.outcome`."""
    meter = Meter(metrics, Labels(tenant, "", ""), key_id, book)
    try:
        yield meter
    except ClientDisconnect:
        meter.outcome = Outcome.CLIENT_GONE
        raise
    except Exception as error:
        status = status_of(error)
        meter.outcome = Outcome.of_status(status)
        if status in REJECTIONS:
            code = error.code if isinstance(error, LorikeetError) else NotReadyError.code
            metrics.rejections.labels(code).inc()
        raise
    finally:
        meter.finish()
