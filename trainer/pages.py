"""Reports that a person reads in a browser: one HTML file with all that it needs inside, and the plots in it.

Whatever is shown may come from a stranger's data: everything is escaped, and the page's own policy forbids scripts and
every fetch. Same values, same bytes.
"""

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any, Final

import jinja2
import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #d5dae0; }
table { border-collapse: collapse; margin: .8rem 0; } th { text-align: left; color: #57606a; font-weight: 600; }
th, td { padding: .25rem .9rem .25rem 0; vertical-align: top; } td.number { text-align: right; }
code, pre { font: 13px/1.5 ui-monospace, monospace; }
pre { background: #f5f7f9; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 4px; }
mark { background: #cdeccf; } .error, .bad { color: #b42318; } .warn { color: #96590a; } .good { color: #1a7f37; }
.quiet { color: #57606a; } .beside { display: flex; gap: 1rem; } .beside > * { flex: 1; min-width: 0; }
svg { max-width: 100%; height: auto; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{{ body }}
</body>
</html>
"""
LOOKS: Final[dict[RcKeyType, Any]] = {
    "svg.fonttype": "none",  # text stays text: small, and found by the browser's search
    "svg.hashsalt": "lorikeet",  # ids that are the same in every run
    "text.parse_math": False,  # a "$" in a name is a "$"
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": "cycler('color', ['#2f6f9f', '#d98032', '#5a9b5a', '#9a5ab0'])",
}
INCHES: Final = (7.0, 2.6)
BINS: Final = 40


def page(title: str, body_template: str, **values: Any) -> str:  # noqa: ANN401  — whatever the template shows
    """A whole HTML page. `body_template` is Jinja's, autoescaped; the plots of the functions below go in as they are.

    Classes that have looks: error, warn, good, bad, quiet, beside (a row of columns), number (a cell); and <mark>.
    Raises jinja2.UndefinedError for a name in it that `values` has not.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    body = Markup(environment.from_string(body_template).render(values))  # noqa: S704  — rendered with autoescape
    return environment.from_string(PAGE).render(title=title, body=body)


def histogram_svg(
    series: Mapping[str, Sequence[float]], *, axis: str, counted: str, marks: Mapping[str, float] | None = None
) -> Markup:
    """How the values of each series (name → values) are spread; empty ones are left out.

    `axis` says what the values are, `counted` what there are so many of; `marks` are upright lines (label → where).
    """
    shown = {name: list(values) for name, values in series.items() if values}
    with mpl.rc_context(LOOKS):
        figure, axes = _canvas()
        if shown:
            axes.hist(list(shown.values()), bins=BINS, label=list(shown), histtype="stepfilled", alpha=0.6)
        for label, place in (marks or {}).items():
            axes.axvline(place, color="#b42318", linewidth=1, linestyle="--", label=label)
        axes.set(xlabel=axis, ylabel=counted)
        return _svg(figure, axes)


def bars_svg(series: Mapping[str, Mapping[str, float]], *, axis: str) -> Markup:
    """Bars side by side: series → (label → value), such as {"base": {"f1": 0.2}, "result": {"f1": 0.9}}.

    `axis` says what the values are. A label that a series has not is left empty there.
    """
    labels = list(dict.fromkeys(label for values in series.values() for label in values))
    width = 0.8 / max(len(series), 1)
    with mpl.rc_context(LOOKS):
        figure, axes = _canvas()
        for order, (name, values) in enumerate(series.items()):
            places = [place + order * width for place, label in enumerate(labels) if label in values]
            axes.bar(places, [values[label] for label in labels if label in values], width=width, label=name)
        middle = (len(series) - 1) * width / 2
        axes.set_xticks([place + middle for place in range(len(labels))], labels)
        axes.set(ylabel=axis)
        return _svg(figure, axes)


def lines_svg(series: Mapping[str, Sequence[tuple[float, float]]], *, axis: str, measured: str) -> Markup:
    """Curves: series → (x, y) points; `axis` says what x is, `measured` what y is."""
    with mpl.rc_context(LOOKS):
        figure, axes = _canvas()
        for name, points in series.items():
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, linewidth=1.4)
        axes.set(xlabel=axis, ylabel=measured)
        return _svg(figure, axes)


def _canvas() -> tuple[Figure, Axes]:
    figure = Figure(figsize=INCHES, layout="constrained")  # not pyplot, whose figures are everybody's
    return figure, figure.add_subplot()


def _svg(figure: Figure, axes: Axes) -> Markup:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)
    drawn = StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return Markup(drawn.getvalue().partition("<svg")[2].join(("<svg", "")))  # noqa: S704  — matplotlib escapes its texts
