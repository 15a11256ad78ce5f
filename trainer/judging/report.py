"""What judging came to: base beside result, what the differences are worth, and whether the result may go live.

One value, which is written as JSON, shown as a page (`report_page`) and summed up in a version's origin. Knows no
libraries but pydantic, so that whoever reads a report needs none.
"""

import json
import math
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

SUMMARY_BYTES: Final = 8192
FEW: Final = 30
"""Below so many examples a share is known to no better than about ±0.17."""


class Value(BaseModel):
    """Frozen; what a later version wrote is kept."""

    model_config = ConfigDict(frozen=True, extra="allow", ser_json_inf_nan="strings")


class Share(Value):
    """A mean of values from 0 to 1, with Wilson's 95 % interval."""

    value: float
    low: float
    high: float
    count: int


class Topic(Value):
    """The regression set's items of one topic."""

    right: int
    count: int
    chance: float
    """The share of right answers that guessing gets."""


class Measures(Value):
    """What was measured of one side. None: it was not, or there was nothing to measure it on."""

    label: str
    loss: float | None = None
    """Per learned token of the held-out examples; for DPO, DPO's own loss, which is ln 2 of the base."""
    perplexity: float | None = None
    """exp(loss); None for DPO."""
    metrics: dict[str, Share] = {}
    stop_rate: Share | None = None
    """The share of answers that end by themselves."""
    abilities: Share | None = None
    """The regression set's share of right answers, and each topic's."""
    topics: dict[str, Topic] = {}


class Difference(Value):
    """One measure of both sides. `low` and `high` are the 95 % interval of the change."""

    name: str
    base: float
    result: float
    change: float
    low: float
    high: float
    verdict: Literal["better", "worse", "no clear change"]
    """Clear is what both the bootstrap's interval and the sign test call so."""


class Threshold(Value):
    """One thing that must hold before `live` may move."""

    name: str
    passed: bool
    reason: str
    """In words, with the figures; why not, if it did not pass."""


class Sample(Value):
    """One held-out prompt and what either side said."""

    line: int
    prompt: str
    expected: str
    base: str
    result: str


class Report(Value):
    """All of it. A report without thresholds has passed: nothing was asked of it."""

    base: Measures
    result: Measures
    differences: tuple[Difference, ...]
    thresholds: tuple[Threshold, ...]
    passed: bool
    reasons: tuple[str, ...]
    """Why not, one sentence a threshold."""
    notes: tuple[str, ...]
    """What to mind when reading the figures."""
    samples: tuple[Sample, ...]
    counts: dict[str, int]
    seconds: float
    versions: dict[str, str]
    curve: tuple[tuple[float, float], ...] = ()
    """The training loss: (step, loss)."""
    held_out_curve: tuple[tuple[float, float], ...] = ()


def refusal(report: Report) -> str | None:
    """Why the result may not go live, in one line; None if it may."""
    if report.passed:
        return None
    return f"{report.result.label} was judged and did not pass: {' '.join(report.reasons)}"


def summary(report: Report) -> dict[str, Any]:
    """The report without samples, topics' details and curve: small enough for a version's origin. Finite JSON."""
    short = {
        "passed": report.passed,
        "reasons": list(report.reasons),
        "base": _side(report.base),
        "result": _side(report.result),
        "differences": [
            {"name": each.name, "change": _number(each.change), "verdict": each.verdict} for each in report.differences
        ],
        "counts": report.counts,
        "seconds": report.seconds,
        "versions": report.versions,
    }
    for spare in ("differences", "reasons"):  # names and reasons come from the job, which may be long
        if len(json.dumps(short).encode()) < SUMMARY_BYTES:
            break
        short[spare] = []
    return short


def as_lines(report: Report) -> str:
    """For a terminal: one line a measure, one a threshold."""
    shown = [
        f"{each.name:<22}{_shown(each.base):>9} → {_shown(each.result):<9} {each.verdict} "
        f"({each.change:+.3f}, {each.low:+.3f} … {each.high:+.3f})"
        for each in report.differences
    ]
    held = [f"{'passed' if each.passed else 'FAILED':<8}{each.reason}" for each in report.thresholds]
    return "\n".join([*shown, *held, *(f"note    {note}" for note in report.notes)])


def _side(measures: Measures) -> dict[str, Any]:
    return {
        "label": measures.label,
        "loss": _number(measures.loss),
        "perplexity": _number(measures.perplexity),
        "metrics": {name: _number(share.value) for name, share in measures.metrics.items()},
        "stop_rate": measures.stop_rate.value if measures.stop_rate else None,
        "abilities": measures.abilities.value if measures.abilities else None,
        "topics": {name: f"{topic.right}/{topic.count}" for name, topic in measures.topics.items()},
    }


def _number(value: float | None) -> float | None:
    return round(value, 6) if value is not None and math.isfinite(value) else None


def _shown(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.3g}"  # noqa: PLR2004
