"""`lorikeet train compare`: two sources beside each other."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from adapters import Caller, Kind, Registry, RegistrySettings
from trainer.errors import JobError
from trainer.progress import Narrator
from trainer.settings import prepare_environment
from trainer.source import open_base_of, open_source
from trainer.verbs.arguments import AsJson, Overrides, as_pairs
from trainer.verbs.held_out import Asked, read_asked, read_task
from trainer.verbs.judge import write_page

if TYPE_CHECKING:
    from trainer.judging.comparison import Closeness
    from trainer.judging.report import Report
    from trainer.judging.values import Side

EXAMPLE = "Example: lorikeet train compare ./merged acme/support@3 --data held-out.jsonl --html beside.html"
ASKS_NOTHING: Mapping[str, Any] = {
    "min_metrics": {},
    "max_loss_ratio": None,
    "max_regression_drop": None,
    "min_stop_rate": None,
}
"""Neither of the two is refused: they are only shown."""


def compare_command(
    first: Annotated[str, typer.Argument(metavar="A", help="A run, adapter or model folder, or TENANT/NAME@N.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another; the changes are from A to B.")],
    *,
    job: Annotated[
        Path | None, typer.Option(metavar="JOB.YAML", help="Judge both by its held-out rows; None: not judged.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="FILE", help="Judge both by all rows of this file; None: not judged.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="What adapters run on; None: what each one names.")
    ] = None,
    logits: Annotated[bool, typer.Option(help="Run both models, and compare their logits on a few texts.")] = True,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the comparison as a page.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Two results beside each other: logits (max, mean, KL, top-1), measures, curves, and where their jobs differ.

    Merged beside unmerged, quantised beside not, one run beside another.
    """
    narrator, caller = Narrator(), Caller.operator()
    is_judged = job is not None or data is not None
    if overrides and not is_judged:
        raise JobError("--set needs --job or --data: it replaces keys of what they are judged by.")
    asked = read_asked(first, job_path=job, data=data, overrides=as_pairs(overrides), least={}) if is_judged else None
    with narrator.step("loading the libraries"):
        prepare_environment()
        from trainer.judging.comparison import (  # noqa: PLC0415  — matplotlib
            Comparison,
            comparison_lines,
            comparison_page,
            differing_keys,
            read_trained,
        )

    with ExitStack() as held:
        registry = held.enter_context(RegistrySettings().open())
        one, other = (_open(held, registry, caller, text, base) for text in (first, second))
        near = _closeness(one, other, narrator) if logits else None
        report = _judge(one, other, asked, narrator) if asked else None
    of_first, of_second = read_trained(one.label, Path(first)), read_trained(other.label, Path(second))
    found = Comparison(
        first=of_first,
        second=of_second,
        differing=differing_keys(of_first.job, of_second.job),
        closeness=near,
        report=report,
    )
    if html:
        write_page(comparison_page(found), html)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    Console(highlight=False, soft_wrap=True, markup=False).print(comparison_lines(found))


def _open(held: ExitStack, registry: Registry, caller: Caller, text: str, base: str | None) -> "Side":
    from trainer.judging.values import Side  # noqa: PLC0415  — heavy

    source = held.enter_context(open_source(registry, caller, text))
    if source.kind is not Kind.LORA:
        return Side(source.label, source.folder)
    beneath = held.enter_context(open_base_of(registry, caller, source, base))
    return Side(source.label, beneath.folder, source.folder)


def _closeness(one: "Side", other: "Side", narrator: Narrator) -> "Closeness":
    from trainer.judging.closeness import PROMPTS, closeness  # noqa: PLC0415  — torch

    return closeness(one, other, PROMPTS, narrator)


def _judge(one: "Side", other: "Side", asked: Asked, narrator: Narrator) -> "Report":
    """The first as the base, by no threshold."""
    from transformers import AutoTokenizer  # noqa: PLC0415  — heavy

    from trainer.judging.abilities import shipped_abilities  # noqa: PLC0415  — with it
    from trainer.judging.judge import judge  # noqa: PLC0415  — with it
    from trainer.judging.values import Judgement  # noqa: PLC0415  — with it

    tokenizer = AutoTokenizer.from_pretrained(one.model, trust_remote_code=False, local_files_only=True)
    return judge(
        Judgement(
            base=one,
            result=other,
            task=read_task(asked, tokenizer, narrator),
            rules=asked.job.judge.model_copy(update=ASKS_NOTHING),
            abilities=shipped_abilities() if asked.job.judge.regression else None,
            precision=asked.job.precision,
            beside=asked.beside,
        ),
        narrator,
    )
