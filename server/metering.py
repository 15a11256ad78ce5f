"""What one request used: tokens as they pass, the time to the first of them, and how it ended.

Counts each request exactly once, however it ends.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from time import monotonic
from typing import Protocol

from starlette.requests import ClientDisconnect

from server.engine.protocol import Usage
from server.errors import status_of
from server.metrics import Labels, Metrics

BASE = "base"
"""The adapter label of requests to the base itself; no adapter may have this name."""


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

    def used(self, labels: Labels, prompt_tokens: int, completion_tokens: int) -> None:
        """So many tokens more."""
        ...

    def ended(self, labels: Labels, *, has_failed: bool) -> None:
        """One request, answered with an error or not."""
        ...


class Meter:
    """One request's. `labels` and `outcome` are set as they become known, `book` and `take` once it is let in."""

    def __init__(self, metrics: Metrics, labels: Labels) -> None:
        self.outcome = Outcome.FAILED
        self.labels = labels
        self.book: Book | None = None
        self.take: Callable[[int], None] | None = None
        """Told of all tokens, as they pass."""
        self._metrics = metrics
        self._began = monotonic()
        self._has_answered = False
        self._usage: dict[str, Usage] = {}

    def on_usage(self, call_id: str, usage: Usage) -> None:
        """Count what `usage` adds to what this generate call had used before."""
        before = self._usage.get(call_id, Usage(0, 0))
        self._usage[call_id] = usage
        prompt_tokens = max(0, usage.prompt_tokens - before.prompt_tokens)
        completion_tokens = max(0, usage.completion_tokens - before.completion_tokens)
        labels = self._metrics.bounded(self.labels)
        self._metrics.tokens.labels(*labels, "prompt").inc(prompt_tokens)
        self._metrics.tokens.labels(*labels, "completion").inc(completion_tokens)
        if self.take is not None:
            self.take(prompt_tokens + completion_tokens)
        if self.book is not None:
            self.book.used(self.labels, prompt_tokens, completion_tokens)
        if usage.completion_tokens and not self._has_answered:
            self._has_answered = True
            self._metrics.first_token_seconds.labels(labels.tenant, labels.adapter).observe(monotonic() - self._began)

    def finish(self) -> None:
        """Count the request."""
        labels = self._metrics.bounded(self.labels)
        self._metrics.requests.labels(*labels, self.outcome.value).inc()
        self._metrics.request_seconds.labels(labels.tenant, labels.adapter).observe(monotonic() - self._began)
        if self.book is not None:
            self.book.ended(self.labels, has_failed=self.outcome in {Outcome.REFUSED, Outcome.FAILED})


@contextmanager
def metered(metrics: Metrics, tenant: str) -> Iterator[Meter]:
    """Measure the request inside the block. What it raises decides the outcome, else whoever set `meter.outcome`."""
    meter = Meter(metrics, Labels(tenant, "", ""))
    try:
        yield meter
    except ClientDisconnect:
        meter.outcome = Outcome.CLIENT_GONE
        raise
    except Exception as error:
        meter.outcome = Outcome.of_status(status_of(error))
        raise
    finally:
        meter.finish()
