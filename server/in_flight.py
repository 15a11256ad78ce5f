"""What runs for clients, and what ends it before its time: the loss of the engine, or a stop that waits no longer.

Whoever waits for the engine does so inside `until_ended()`; nothing else would wake it from an engine that hangs.
Belongs to one event loop.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from anyio import CancelScope

from server.engine.protocol import EngineDeadError
from server.errors import DrainingError


class InFlight:
    """One server's."""

    def __init__(self, on_loss: Callable[[], None] = lambda: None) -> None:
        self._on_loss = on_loss
        self._scopes: set[CancelScope] = set()
        self._ending: Callable[[], Exception] | None = None
        self.is_draining = False
        """Whether a stop was asked for: what runs may end, nothing new begins."""
        self.is_lost = False
        """Whether the engine is lost: only a new process mends that."""

    def admit(self) -> None:
        """Raises DrainingError if nothing new may begin."""
        if self.is_draining:
            raise draining()

    @contextmanager
    def until_ended(self) -> Iterator[None]:
        """Give up what the block waits for when the engine is lost or the stop's patience ends.

        Raises:
            EngineDeadError, DrainingError: it was given up, or need not have begun.
        """
        if self._ending is not None:
            raise self._ending()
        with CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
        if scope.cancel_called and self._ending is not None:
            raise self._ending()

    def drain(self) -> None:
        """Begin nothing new."""
        self.is_draining = True

    def cut(self) -> None:
        """End what still runs."""
        self._end(draining)

    def lose(self) -> None:
        """The engine is lost: end all that waits for it."""
        if not self.is_lost:
            self.is_lost = True
            self._on_loss()
        self._end(_lost)

    def _end(self, ending: Callable[[], Exception]) -> None:
        self._ending = self._ending or ending
        for scope in tuple(self._scopes):
            scope.cancel()


def draining() -> DrainingError:
    """What a server that stops answers."""
    return DrainingError("The server is stopping: ask another one, or come back.", headers={"connection": "close"})


def _lost() -> EngineDeadError:
    return EngineDeadError("the engine died or hangs")
