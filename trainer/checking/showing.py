"""How a data report looks: lines for a terminal, a page for a browser. Decides nothing."""

from typing import Final

from rich.console import Console
from rich.markup import escape

from trainer.checking.report import DataReport, Lengths, Sample, Side
from trainer.dataset import Finding, Severity
from trainer.progress import printable

STYLES: Final = {Severity.ERROR: "bold red", Severity.WARN: "yellow", Severity.DROP: "cyan", Severity.NOTE: "dim"}

PAGE: Final = """
<p class="{{ 'good' if report.is_sound else 'bad' }}">
{{ 'Sound: it can be trained on.' if report.is_sound else 'Not sound: it is not trained on as it stands.' }}</p>
<table>
<tr><th></th><th>rows</th><th>left out</th><th>tokens</th><th>learned</th><th>shortest · median · longest</th></tr>
{% for what, side in (("trained on", report.train), ("held out", report.held_out)) %}
<tr><th>{{ what }}</th><td class="number">{{ side.rows }}</td>
<td class="number">{{ side.read_rows - side.rows }}</td>
{% if side.lengths and side.learned %}
<td class="number">{{ side.lengths.total }}</td><td class="number">{{ '%.1f' % (100 * side.supervised_share) }} %</td>
<td>{{ side.lengths.shortest }} · {{ side.lengths.median }} · {{ side.lengths.longest }}</td>
{% else %}<td></td><td></td><td></td>{% endif %}</tr>
{% endfor %}
</table>
<h2>Findings</h2>
{% if not report.findings %}<p>None.</p>{% endif %}
{% for finding in report.findings %}
<p><b class="{{ finding.severity }}">{{ finding.severity }}</b> <code>{{ finding.code }}</code>
{{ finding.sentence }}. <span class="quiet">{{ finding.fix }}</span>
{% if finding.places %}<br>{{ finding.where }}{% endif %}</p>
{% endfor %}
{% if report.train_lengths %}
<h2>Lengths</h2>
{{ rows_plot }}
{{ learned_plot }}
{% endif %}
{% if report.samples %}
<h2>What is learned</h2>
<p class="quiet">Rows as the model reads them; what is marked is learned.</p>
{% for sample in report.samples %}
<h3>line {{ sample.line }}</h3>
<pre>{% for stretch in sample.stretches %}{% if stretch.is_learned %}<mark>{{ stretch.text }}</mark>{% else %}{{ stretch.text }}{% endif %}{% endfor %}</pre>
{% endfor %}
{% endif %}
<h2>Fingerprints</h2>
<table>
<tr><th>as read</th><td><code>{{ report.source_fingerprint }}</code></td></tr>
<tr><th>trained on</th><td><code>{{ report.train.fingerprint }}</code></td></tr>
<tr><th>held out</th><td><code>{{ report.held_out.fingerprint }}</code></td></tr>
</table>
"""  # noqa: E501  — white space counts inside <pre>


def as_html(report: DataReport) -> str:
    """data.html: one file with all that it needs inside."""
    from trainer.pages import histogram_svg, page  # noqa: PLC0415  — draws with matplotlib: a second

    lengths = {"trained on": report.train_lengths, "held out": report.held_out_lengths}
    longest = max((*report.train_lengths, *report.held_out_lengths, 0))
    marks = {"max_length": report.max_length} if longest > report.max_length / 2 else {}
    return page(
        f"Data: {report.train.name}",
        PAGE,
        report=report,
        rows_plot=histogram_svg(lengths, axis="tokens in a row", counted="rows", marks=marks),
        learned_plot=histogram_svg({"learned": report.learned_lengths}, axis="tokens learned in a row", counted="rows"),
    )


def show(report: DataReport, console: Console) -> None:
    """Everything, for a terminal; each finding is one line."""
    console.print(f"data        {escape(report.train.name)}: {report.shape}")
    console.print(f"trained on  {_side(report.train)}")
    console.print(f"held out    {_side(report.held_out)}")
    for sample in report.samples:
        console.print(f"\n[dim]line {sample.line} as the model reads it; what is \\[\\[marked]] is learned[/]")
        console.print(_sample(sample))
    console.print()
    show_findings(report.findings, console)
    console.print("sound" if report.is_sound else "[bold red]not sound[/]: nothing would be trained")


def show_findings(findings: tuple[Finding, ...], console: Console) -> None:
    """A line for each."""
    for finding in findings:
        console.print(f"[{STYLES[finding.severity]}]{finding.severity:<5}[/] {escape(printable(str(finding)))}")


def _side(side: Side) -> str:
    out = ", ".join(f"{count} for {code}" for code, count in side.dropped.items())
    rows = f"{side.rows} rows" + (f" ({side.read_rows - side.rows} left out: {out})" if out else "")
    if not (side.lengths and side.learned):
        return rows
    return f"{rows}, {_lengths(side.lengths)}; {side.learned.total} tokens learned ({side.supervised_share:.1%})"


def _lengths(lengths: Lengths) -> str:
    return (
        f"{lengths.total} tokens: {lengths.shortest} to {lengths.longest} in a row, {lengths.median} in the middle, "
        f"one in twenty has {lengths.longest_5_percent} or more"
    )


def _sample(sample: Sample) -> str:
    """What is learned in colour, and in brackets for where there is none."""
    return "".join(
        f"[green]\\[\\[{escape(printable(stretch.text))}]][/]"
        if stretch.is_learned
        else escape(printable(stretch.text))
        for stretch in sample.stretches
    )
