"""Ctrl-C and SIGTERM: the step is finished, a checkpoint written, and only then the training ends.

A second signal ends the process at once, as it would without this; the checkpoints that are whole stay whole.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import torch
from transformers import TrainerCallback

from trainer.errors import Interrupted

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Stop(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Ends the training at the next whole step after `request`; must stand behind the callback that seals."""

    def __init__(self) -> None:
        self.requested: int | None = None
        self._decided: int | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    @contextmanager
    def at_signals(self) -> Iterator[None]:
        """Let the first signal ask; the handlers are put back at once, for the second, and when the block ends."""
        if threading.current_thread() is not threading.main_thread():  # no place for handlers
            yield
            return
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            signal.signal(number, self._ask)
        try:
            yield
        finally:
            self._put_back()

    def request(self, signal_number: int) -> None:
        """Ask for the end; the first to ask is the reason."""
        if self.requested is None:
            self.requested = signal_number

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.request(number)
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def on_step_end(self, _args: object, _state: object, control: Any, **_: object) -> None:  # noqa: ANN401
        """Have a checkpoint written. Decided here, once a step, so that all processes of a run decide alike."""
        self._decided = _largest(self.requested or 0) or None
        if self._decided is not None:
            control.should_save = True

    def on_save(self, _args: object, state: Any, _control: object, **_: object) -> None:  # noqa: ANN401
        """The checkpoint is whole: go."""
        if self._decided is not None:
            raise _interrupted(self._decided, state)

    def leave_if_asked(self, state: Any) -> None:  # noqa: ANN401
        """Go, if the signal came when the last checkpoint was written already."""
        if self.requested is not None:
            raise _interrupted(self.requested, state)


def _interrupted(number: int, state: Any) -> Interrupted:  # noqa: ANN401
    return Interrupted(
        f"Stopped by {signal.Signals(number).name} after step {state.global_step} of {state.max_steps}; "
        "its checkpoint is whole.",
        signal_number=number,
        step=state.global_step,
    )


def _largest(number: int) -> int:
    """Over all processes of the run."""
    if not torch.distributed.is_initialized():
        return number
    asked = torch.tensor(number, device="cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
    return int(asked.item())
