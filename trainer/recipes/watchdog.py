"""What a loss curve says while it grows, as advice: the articles' rules of thumb, each told once or seldom.

A function of the curve alone: the same steps give the same advice, in whatever portions they are seen. Nothing here
changes a training, save that one whose loss is no number any more is ended.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Final, Literal

from trainer.errors import TrainingError
from trainer.step import Advice, Step

Kind = Literal["nothing_to_learn", "dead_adapter", "flat", "noisy", "rising", "plateau", "jitter"]

WINDOW: Final = 50
"""Steps that are judged together; the articles say 50 to 100 before a loss is called flat."""
LEARNED: Final = 0.02
"""Less than this share of the loss lost over a window is no fall."""
NOTHING: Final = 1e-3
"""A loss that begins below it has nothing to learn, or learns nothing: the mask is wrong."""
SETTLED: Final = 0.05
"""A loss below it may well be flat: it has arrived."""
NOISE: Final = 0.5
"""The median jump from step to step, as a share of the median loss, that is called noisy."""
RISE: Final = 1.5
"""Times the best window's loss: it goes up."""
JITTER: Final = 3.0
"""The slowest twentieth of steps takes so many times the median's time a token."""
ENDING: Final = 0.2
"""The last share of the steps: the learning rate goes to zero there, and so does what is learned."""


@dataclass(frozen=True, slots=True)
class Remedies:
    """What this job could change."""

    is_adapter: bool
    learning_rate: float
    alpha: float
    rank: int


class Watchdog:
    """Sees every step of a run, and says what it thinks of them."""

    def __init__(self, remedies: Remedies) -> None:
        self._remedies = remedies
        self._steps: deque[Step] = deque(maxlen=2 * WINDOW)
        self._best_window = math.inf
        self._told: dict[Kind, int] = {}
        self._times: dict[Kind, int] = {}

    def see(self, step: Step) -> list[Advice]:
        """Take in the next step.

        Raises:
            TrainingError: its loss or gradient is not a number, or infinite.
        """
        require_finite(step)
        self._steps.append(step)
        rules: tuple[tuple[Kind, Callable[[], str | None]], ...] = (
            ("nothing_to_learn", self._nothing_to_learn),
            ("dead_adapter", self._dead),
            ("flat", self._flat),
            ("noisy", self._noisy),
            ("rising", self._rising),
            ("plateau", self._plateau),
            ("jitter", self._jitter),
        )
        return list(self._advice(step, rules))

    def _advice(self, step: Step, rules: Sequence[tuple[Kind, Callable[[], str | None]]]) -> Iterator[Advice]:
        for kind, rule in rules:
            if (sentence := rule()) is not None and self._is_due(kind, step.step):
                self._told[kind] = step.step
                self._times[kind] = self._times.get(kind, 0) + 1
                yield Advice(step=step.step, kind=kind, sentence=sentence)

    def _is_due(self, kind: Kind, step: int) -> bool:
        """Never a second time, save a plateau: that has two remedies, and time to try the first."""
        last = self._told.get(kind)
        return last is None or (kind == "plateau" and self._times[kind] < 2 and step - last >= 4 * WINDOW)  # noqa: PLR2004

    def _nothing_to_learn(self) -> str | None:
        first = self._steps[0]
        if len(self._steps) > 1 or first.step != 1 or first.loss >= NOTHING:
            return None
        return (
            f"the loss begins at {first.loss:.4f}: the base says this already, or what is learned is masked; "
            "look at the decoded examples in the data's report"
        )

    def _dead(self) -> str | None:
        if self._steps[-1].gradient_norm > 0:
            return None
        return "no gradient reaches what is trained: nothing is learned; look at target_modules and the base's layers"

    def _flat(self) -> str | None:
        """After the hundredth step, or the fiftieth of a shorter run."""
        latest = self._steps[-1]
        look = 2 * WINDOW if latest.total_steps > 2 * WINDOW else WINDOW
        if latest.step != look or len(self._steps) != look or latest.loss < SETTLED:
            return None
        begun, now = _means(self._steps, parts=2)
        if now < begun * (1 - LEARNED):
            return None
        return (
            f"the loss has not fallen in {look} steps ({begun:.3f}, then {now:.3f}): raise learning_rate, "
            f"such as {3 * self._remedies.learning_rate:.1e}"
        )

    def _noisy(self) -> str | None:
        if len(self._steps) < WINDOW:
            return None
        losses = self._last_losses()
        middle = median(losses)
        jump = median(abs(after - before) for before, after in pairwise(losses))
        if middle < SETTLED or jump < NOISE * middle:
            return None
        return (
            f"the loss jumps by {jump / middle:.0%} from step to step: lower learning_rate, "
            f"such as {self._remedies.learning_rate / 3:.1e}, or raise gradient_accumulation"
        )

    def _rising(self) -> str | None:
        if len(self._steps) < WINDOW:
            return None
        now = fmean(self._last_losses())
        best, self._best_window = self._best_window, min(self._best_window, now)
        if now < SETTLED or now < RISE * best:
            return None
        return (
            f"the loss rises ({best:.3f} at its best, {now:.3f} now): lower learning_rate, "
            f"such as {self._remedies.learning_rate / 3:.1e}"
        )

    def _plateau(self) -> str | None:
        latest = self._steps[-1]
        is_ending = latest.step > (1 - ENDING) * latest.total_steps
        if not self._remedies.is_adapter or len(self._steps) < 2 * WINDOW or is_ending or "flat" in self._told:
            return None
        quarters = _means(self._steps, parts=4)
        now = quarters[-1]
        if latest.step <= 2 * WINDOW or now < SETTLED or max(quarters) - min(quarters) > LEARNED * now:
            return None
        if self._times.get("plateau", 0) == 0:
            remedy = f"double alpha first (to {2 * self._remedies.alpha:g}), and only then rank"
        else:
            remedy = f"if alpha is doubled already, double rank (to {2 * self._remedies.rank})"
        return f"the loss stands still at {now:.3f} since step {latest.step - 2 * WINDOW + 1}: {remedy}"

    def _jitter(self) -> str | None:
        if len(self._steps) < WINDOW:
            return None
        speeds = sorted(step.tokens_per_second for step in list(self._steps)[-WINDOW:] if step.tokens_per_second > 0)
        if len(speeds) < WINDOW:
            return None
        slow, usual = speeds[WINDOW // 20], median(speeds)
        if usual < JITTER * slow:
            return None
        return (
            f"one step in twenty takes {usual / slow:.1f} times as long as the others: memory is being paged, "
            "or another process works on the same cores"
        )

    def _last_losses(self) -> list[float]:
        return [step.loss for step in list(self._steps)[-WINDOW:]]


def require_finite(step: Step) -> None:
    """Raise TrainingError unless the step's loss and gradient are numbers."""
    for name, value in (("loss", step.loss), ("gradient", step.gradient_norm)):
        if not math.isfinite(value):
            raise TrainingError(
                f"The {name} of step {step.step} is {value}: the training has diverged, and nothing of it is kept "
                "but the checkpoints before. Lower learning_rate, or look for examples that hold odd text."
            )


def _means(steps: Sequence[Step], *, parts: int) -> list[float]:
    """The mean loss of each part, the earliest first."""
    losses = [step.loss for step in steps]
    size = len(losses) // parts
    return [fmean(losses[part * size : (part + 1) * size]) for part in range(parts)]
