"""A report as a page that a person reads in a browser."""

from typing import Final

from trainer.judging.report import Measures, Report
from trainer.pages import bars_svg, lines_svg, page

BODY: Final = """
{% if not report.thresholds %}<p>Judged; no threshold was set.</p>
{% elif report.passed %}<p class="good"><b>Passed.</b> {{ report.result.label }} may go live.</p>
{% else %}<p class="bad"><b>Did not pass.</b> {{ report.result.label }} may not go live.</p>{% endif %}
{% if report.thresholds %}<table>
{% for each in report.thresholds %}<tr><td class="{{ 'good' if each.passed else 'bad' }}">
{{- 'passed' if each.passed else 'failed' }}</td><td><code>{{ each.name }}</code></td><td>{{ each.reason }}</td></tr>
{% endfor %}</table>{% endif %}
{% for note in report.notes %}<p class="warn">{{ note }}</p>
{% endfor %}
<h2>{{ report.base.label }} beside {{ report.result.label }}</h2>
<table><tr><th>measure</th><th>{{ report.base.label }}</th><th>{{ report.result.label }}</th><th>change</th>
<th>95 % interval</th><th></th></tr>
{% for each in report.differences %}<tr><td>{{ each.name }}</td><td class="number">{{ "%.4g"|format(each.base) }}</td>
<td class="number">{{ "%.4g"|format(each.result) }}</td><td class="number">{{ "%+.4g"|format(each.change) }}</td>
<td class="number">{{ "%+.4g"|format(each.low) }} … {{ "%+.4g"|format(each.high) }}</td>
<td class="{{ looks[each.verdict] }}">{{ each.verdict }}</td></tr>
{% endfor %}
{% if report.base.perplexity is not none %}<tr><td>perplexity</td>
<td class="number">{{ "%.4g"|format(report.base.perplexity) }}</td>
<td class="number">{{ "%.4g"|format(report.result.perplexity) }}</td></tr>{% endif %}
</table>
{% if bars %}{{ bars }}{% endif %}
{% if report.base.topics %}<h2>General abilities</h2>
<p class="quiet">Right answers to the regression set, by topic; guessing gets “chance”.</p>
<table><tr><th>topic</th><th>{{ report.base.label }}</th><th>{{ report.result.label }}</th><th>chance</th></tr>
{% for name, topic in report.base.topics.items() %}<tr><td>{{ name }}</td>
<td class="number">{{ topic.right }}/{{ topic.count }}</td>
<td class="number">{{ report.result.topics[name].right }}/{{ report.result.topics[name].count }}</td>
<td class="number">{{ "%.2f"|format(topic.chance) }}</td></tr>
{% endfor %}</table>{{ abilities }}{% endif %}
{% if curves %}<h2>Loss</h2>{{ curves }}{% endif %}
{% if report.samples %}<h2>Side by side</h2>
{% for sample in report.samples %}<h3>Line {{ sample.line }}</h3><pre>{{ sample.prompt }}</pre>
<div class="beside"><div><b>expected</b><pre>{{ sample.expected }}</pre></div>
<div><b>{{ report.base.label }}</b><pre>{{ sample.base }}</pre></div>
<div><b>{{ report.result.label }}</b><pre>{{ sample.result }}</pre></div></div>
{% endfor %}{% endif %}
<p class="quiet">{{ report.counts.held_out }} held-out examples, {{ report.counts.answers }} answers,
{{ report.counts.abilities }} general questions; {{ report.seconds }} s.
{% for name, version in report.versions.items() %}{{ name }} {{ version }} {% endfor %}</p>
"""
LOOKS: Final = {"better": "good", "worse": "bad", "no clear change": "quiet"}


def as_html(report: Report) -> str:
    """One page with all that it needs inside."""
    shares = {side.label: _shares(side) for side in (report.base, report.result)}
    topics = {side.label: _topics(side) for side in (report.base, report.result)}
    curves = {"training": report.curve, "held out": report.held_out_curve}
    return page(
        f"{report.result.label}: judged",
        BODY,
        report=report,
        looks=LOOKS,
        bars=bars_svg(shares, axis="share") if any(shares.values()) else "",
        abilities=bars_svg(topics, axis="share of right answers") if any(topics.values()) else "",
        curves=lines_svg({name: curve for name, curve in curves.items() if curve}, axis="step", measured="loss")
        if any(curves.values())
        else "",
    )


def _shares(side: Measures) -> dict[str, float]:
    found = {name: share.value for name, share in side.metrics.items()}
    if side.stop_rate is not None:
        found["stops"] = side.stop_rate.value
    if side.abilities is not None:
        found["abilities"] = side.abilities.value
    return found


def _topics(side: Measures) -> dict[str, float]:
    return {name: topic.right / topic.count for name, topic in side.topics.items()}
