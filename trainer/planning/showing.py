"""An outlook for a person (tables) and for a program (JSON). A speed says whether it was measured or stated."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.explained import Explained
from trainer.planning.articles import Disagreement
from trainer.planning.duration import Basis, Duration
from trainer.planning.facts import HEADROOM
from trainer.planning.outlook import Outlook
from trainer.planning.servability import Complaint

TERMS = {
    "weights": "the base as the method holds it",
    "adapters": "float32",
    "gradients": "one for each trained parameter",
    "optimizer": "Adam's two moments",
    "activations": "kept for the backward pass",
    "logits": "of the learned positions",
    "evaluation": "beyond a step",
    "loading": "beyond a step",
    "runtime": "libraries and allocator",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """All that is shown."""

    outlook: Outlook
    servability: Sequence[Complaint]
    disagreements: Sequence[Disagreement]
    explained: Sequence[Explained]
    price_per_hour: float | None


def as_json(shown: Shown) -> dict[str, Any]:
    """Plain values."""
    outlook = shown.outlook
    architecture, memory = outlook.architecture, outlook.memory
    return {
        "base": architecture.name,
        "family": architecture.family,
        "method": outlook.job.method,
        "variant": outlook.job.variant if outlook.job.method.is_adapter else None,
        "trainable_parameters": outlook.trainable_parameters,
        "total_parameters": architecture.total_parameters,
        "trainable_share": outlook.trainable_parameters / architecture.total_parameters,
        "precision": outlook.precision,
        "memory_bytes": memory.as_json(),
        "static_bytes": memory.static,
        "static_bytes_per_parameter": memory.static / architecture.total_parameters,
        "hardware": asdict(outlook.hardware),
        "data": asdict(outlook.shape),
        "fits": outlook.fits,
        "would_fit": list(outlook.would_fit),
        "recommendation": asdict(outlook.recommendation),
        "advice": [asdict(advice) for advice in outlook.advice],
        "disagreements": [asdict(disagreement) for disagreement in shown.disagreements],
        "servability": [asdict(complaint) for complaint in shown.servability],
        "time": _time(outlook.duration),
        "cost": _cost(outlook.duration, shown.price_per_hour),
        "job": [asdict(key) for key in shown.explained],
    }


def show(shown: Shown, out: Console, *, with_articles: bool) -> None:
    """Tables, the figures first."""
    outlook = shown.outlook
    out.print(_sizes(outlook))
    out.print(_memory(outlook))
    for line in (*_fit(outlook), *_duration(outlook.duration, shown.price_per_hour)):
        out.print(line, markup=False)
    for title, lines in (
        ("Recommended", _recommendation(outlook)),
        ("Unwise in this job", [_advice(advice.sentence, advice.source, advice.fix) for advice in outlook.advice]),
        ("Serving it", [complaint.sentence for complaint in shown.servability]),
    ):
        if lines:
            out.print(f"\n[bold]{title}[/bold]")
        for line in lines:
            out.print(f"  {line}", markup=False)
    out.print(_keys(shown.explained))
    if with_articles:
        out.print(_articles(shown.disagreements))
    else:
        out.print(f"On {len(shown.disagreements)} questions the articles disagree: --articles shows who says what.")


def _time(duration: Duration | None) -> dict[str, Any] | None:
    if duration is None:
        return None
    return asdict(duration) | {"tokens_per_second": duration.tokens / duration.seconds}


def _cost(duration: Duration | None, price_per_hour: float | None) -> dict[str, Any] | None:
    if duration is None or price_per_hour is None:
        return None
    return {"price_per_hour": price_per_hour, **duration.cost(price_per_hour)}


def _sizes(outlook: Outlook) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    job, architecture = outlook.job, outlook.architecture
    share = outlook.trainable_parameters / architecture.total_parameters
    method = f"{job.method}, {job.variant} of rank {job.rank}" if job.method.is_adapter else str(job.method)
    assumed = ", lengths assumed" if outlook.shape.is_assumed else ""
    batch = f"{job.batch_size} × {outlook.shape.longest_tokens} tokens, × {job.gradient_accumulation} a step{assumed}"
    for name, value in (
        ("base", f"{architecture.name} ({architecture.family}, {architecture.layers} layers)"),
        ("method", f"{method}, {outlook.precision}"),
        ("parameters", f"{architecture.total_parameters:,}"),
        ("trainable", f"{outlook.trainable_parameters:,} ({share:.3%})"),
        ("batch", batch),
        ("planned for", outlook.hardware.name),
    ):
        table.add_row(name, value)
    return table


def _memory(outlook: Outlook) -> Table:
    table = Table(title="Memory at the peak, estimated", title_justify="left", box=None, pad_edge=False)
    table.add_column("term")
    table.add_column("GiB", justify="right")
    table.add_column("what it is", style="dim")
    for term, size in outlook.memory.as_json().items():
        if size:
            table.add_row(term, f"{size / 2**30:.2f}", TERMS.get(term, ""))
    per_parameter = outlook.memory.static / outlook.architecture.total_parameters
    table.add_row(
        "static",
        f"{outlook.memory.static / 2**30:.2f}",
        f"of it, whatever the batch: {per_parameter:.2f} bytes a parameter",
    )
    return table


def _fit(outlook: Outlook) -> Iterator[str]:
    available = outlook.hardware.memory_bytes
    if available is None:
        yield "fits        not known: say what there is, with --memory 24GiB"
        return
    there = f"{outlook.memory.total / 2**30:.2f} of {available / 2**30:.2f} GiB, of which {HEADROOM:.0%} are used"
    yield f"fits        {'yes' if outlook.fits else 'NO'}: {there}"
    if outlook.fits is False:
        yield from (f"  would fit with {change}" for change in outlook.would_fit)
        if not outlook.would_fit:
            yield "  no change of this job's keys makes it fit: take a smaller base, or more memory"


def _duration(duration: Duration | None, price_per_hour: float | None) -> Iterator[str]:
    if duration is None:
        yield "time        not known: say how many examples there are, with --examples N"
        return
    how = "measured here" if duration.basis is Basis.MEASURED else "not measured: stated"
    low, high = _hours(duration.fastest_seconds), _hours(duration.slowest_seconds)
    work = f"{duration.tokens:,} tokens, {duration.steps:,} steps"
    yield f"time        {_hours(duration.seconds)} ({low} to {high}) for {work}"
    yield f"            {how}: {duration.source}"
    if price_per_hour is not None:
        cost = duration.cost(price_per_hour)
        span = f"{cost['least']:.2f} to {cost['most']:.2f}"
        yield f"cost        {cost['expected']:.2f} ({span}) at {price_per_hour:g} an hour"


def _hours(seconds: float) -> str:
    if seconds < 120:  # noqa: PLR2004  — two minutes
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"  # noqa: PLR2004  — two hours


def _recommendation(outlook: Outlook) -> list[str]:
    found = outlook.recommendation
    lines = [f"method: {found.method or 'none fits'}", *(f"  because {reason}" for reason in found.reasons)]
    lines += [f"  not {rejected.method}: {rejected.reason}" for rejected in found.rejected]
    lines += [f"first: {step}" for step in found.first]
    return lines + [f"then: {rung}" for rung in found.ladder]


def _advice(sentence: str, source: str, fix: str | None) -> str:
    return f"{sentence} ({source}){f' → {fix}' if fix else ''}"


def _keys(keys: Sequence[Explained]) -> Table:
    table = Table(title="\nEvery key of the job", title_justify="left", box=None, pad_edge=False)
    for column in ("key", "value", "from"):
        table.add_column(column)
    for key in keys:
        table.add_row(key.key, str(key.value), key.where)
    return table


def _articles(disagreements: Sequence[Disagreement]) -> Table:
    table = Table(title="\nWhere the articles disagree", title_justify="left", box=None, pad_edge=False)
    for column in ("question", "they say", "what holds"):
        table.add_column(column, overflow="fold")
    for disagreement in disagreements:
        said = "; ".join(f"{article}: {sentence}" for article, sentence in disagreement.said)
        table.add_row(disagreement.question, said, f"{disagreement.verdict} ({disagreement.basis})")
    return table
