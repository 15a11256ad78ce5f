"""Two sources beside each other: how near their answers are, what was measured of both, how they were trained.

Knows no libraries but pydantic: it is what `lorikeet train compare` prints.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import Field, ValidationError

from trainer.judging.curve import read_curve
from trainer.judging.report import Report, Value, as_lines
from trainer.pages import lines_svg, page

REPORT: Final = "report.json"


class Closeness(Value):
    """How far the next-token distributions of two models are apart."""

    tokens: int
    """Compared."""
    largest: float
    mean: float
    """The absolute difference of two logits, each position's around zero."""
    kl_per_token: float
    """Nats of the second relative to the first."""
    top1_agreement: float
    """The share of positions at which both find the same token likeliest."""


class Trained(Value):
    """What a run's folder says of one source; empty of what is no run."""

    label: str
    job: dict[str, Any] = Field(default_factory=dict)
    curve: tuple[tuple[float, float], ...] = ()
    held_out_curve: tuple[tuple[float, float], ...] = ()
    report: Report | None = None


class Comparison(Value):
    """All of it."""

    first: Trained
    second: Trained
    differing: dict[str, tuple[Any, Any]]
    """Keys of the jobs that differ, with both values; of sections as `judge.max_examples`."""
    closeness: Closeness | None
    report: Report | None
    """Both judged on the same examples, the first as the base."""


def read_trained(label: str, folder: Path) -> Trained:
    """What is known of the training of a source: its run's job, curve and report, as far as they are there."""
    return Trained(
        label=label,
        job=_job(folder / "job.yaml"),
        curve=read_curve(folder / "metrics.jsonl", "loss"),
        held_out_curve=read_curve(folder / "metrics.jsonl", "held_out_loss"),
        report=_report(folder / REPORT),
    )


def differing_keys(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys of two jobs that say different things; None where one has no such key."""
    if not first or not second:
        return {}
    flat_first, flat_second = _flat(first), _flat(second)
    keys = dict.fromkeys((*flat_first, *flat_second))
    pairs = {key: (flat_first.get(key), flat_second.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def comparison_lines(found: Comparison) -> str:
    """For a terminal."""
    lines = []
    near = found.closeness
    if near:
        lines.append(
            f"logits  {near.tokens} tokens: {near.mean:.2g} apart on the average, {near.largest:.2g} at the most; "
            f"KL {near.kl_per_token:.2g} a token; the same likeliest token {near.top1_agreement:.1%}"
        )
    lines.extend(
        f"job     {key}: {json.dumps(first)} → {json.dumps(second)}" for key, (first, second) in found.differing.items()
    )
    lines.extend(
        f"curve   {side.label}: {len(side.curve)} steps, loss {side.curve[-1][1]:.3f} at the end"
        for side in (found.first, found.second)
        if side.curve
    )
    if found.report:
        lines.append(as_lines(found.report))
    return "\n".join(lines) or "nothing is known of either but that they are there"


BODY: Final = """
{% if near %}<h2>Logits</h2><table>
<tr><td>tokens compared</td><td class="number">{{ near.tokens }}</td></tr>
<tr><td>difference, mean</td><td class="number">{{ "%.3g"|format(near.mean) }}</td></tr>
<tr><td>difference, largest</td><td class="number">{{ "%.3g"|format(near.largest) }}</td></tr>
<tr><td>KL, nats a token</td><td class="number">{{ "%.3g"|format(near.kl_per_token) }}</td></tr>
<tr><td>same likeliest token</td><td class="number">{{ "%.1f %%"|format(100 * near.top1_agreement) }}</td></tr>
</table>{% endif %}
{% if found.differing %}<h2>Jobs</h2><table><tr><th>key</th><th>{{ found.first.label }}</th>
<th>{{ found.second.label }}</th></tr>
{% for key, pair in found.differing.items() %}<tr><td><code>{{ key }}</code></td>
<td><code>{{ pair[0]|tojson }}</code></td><td><code>{{ pair[1]|tojson }}</code></td></tr>
{% endfor %}</table>{% endif %}
{% if curves %}<h2>Loss</h2>{{ curves }}{% endif %}
{% for title, report in reports %}<h2>{{ title }}</h2>
<table><tr><th>measure</th><th>{{ report.base.label }}</th><th>{{ report.result.label }}</th><th>change</th></tr>
{% for each in report.differences %}<tr><td>{{ each.name }}</td><td class="number">{{ "%.4g"|format(each.base) }}</td>
<td class="number">{{ "%.4g"|format(each.result) }}</td><td class="number">{{ "%+.4g"|format(each.change) }}</td>
<td>{{ each.verdict }}</td></tr>
{% endfor %}</table>{% endfor %}
{% if found.report %}{% for sample in found.report.samples %}<h3>Line {{ sample.line }}</h3>
<pre>{{ sample.prompt }}</pre>
<div class="beside"><div><b>expected</b><pre>{{ sample.expected }}</pre></div>
<div><b>{{ found.first.label }}</b><pre>{{ sample.base }}</pre></div>
<div><b>{{ found.second.label }}</b><pre>{{ sample.result }}</pre></div></div>
{% endfor %}{% endif %}
"""


def comparison_page(found: Comparison) -> str:
    """One page with all that it needs inside."""
    sides = (found.first, found.second)
    curves = {
        f"{side.label}{suffix}": curve
        for side in sides
        for suffix, curve in (("", side.curve), (", held out", side.held_out_curve))
        if curve
    }
    judged = [(f"Report of {side.label}", side.report) for side in sides if side.report]
    return page(
        f"{found.first.label} beside {found.second.label}",
        BODY,
        found=found,
        near=found.closeness,
        curves=lines_svg(curves, axis="step", measured="loss") if curves else "",
        reports=[*([("Both on the same examples", found.report)] if found.report else []), *judged],
    )


def _job(path: Path) -> dict[str, Any]:
    try:
        job = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return job if isinstance(job, dict) else {}


def _report(path: Path) -> Report | None:
    try:
        return Report.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _flat(job: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in job.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = value
    return flat
