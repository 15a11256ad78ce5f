"""`lorikeet train judge`: base beside result, and whether it may go live."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from adapters import Caller, Kind, RegistrySettings
from trainer.errors import JobError
from trainer.plan import base_reference
from trainer.progress import Narrator
from trainer.settings import prepare_environment
from trainer.source import BaseFiles, Source, open_base_of, open_source
from trainer.verbs.arguments import AsJson, Overrides, as_pairs
from trainer.verbs.held_out import Asked, read_asked, read_task

if TYPE_CHECKING:
    from trainer.judging.report import Report

EXAMPLE = "Example: lorikeet train judge acme/support@3 --data held-out.jsonl --min exact_match=0.9 --html report.html"
DID_NOT_PASS = 1


def judge_command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A run, adapter or model folder, or TENANT/NAME@N.")],
    *,
    job: Annotated[
        Path | None,
        typer.Option(metavar="JOB.YAML", help="Judge by its held-out rows and thresholds; None: the run's own."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="FILE", help="Judge by all rows of this file, and the default thresholds.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="What it is judged beside; None: what the source names.")
    ] = None,
    least: Annotated[
        list[str] | None,
        typer.Option("--min", metavar="METRIC=SHARE", help="What the result must reach; repeatable."),
    ] = None,
    abilities: Annotated[
        Path | None,
        typer.Option(metavar="FILE|FOLDER", help="A regression set of your own, in place of the one that ships."),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as a page, with plots.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure a result beside its base: held-out loss, metrics of its answers, general abilities, whether it stops.

    Exit code 0: it passed the thresholds, or there are none; 1: it did not; 2: it could not be judged.
    """
    narrator, settings, caller = Narrator(), RegistrySettings(), Caller.operator()
    asked = read_asked(source, job_path=job, data=data, overrides=as_pairs(overrides), least=as_shares(least))
    with ExitStack() as held:
        registry = held.enter_context(settings.open())
        opened = held.enter_context(open_source(registry, caller, source))
        beside = held.enter_context(open_base_of(registry, caller, opened, base or _job_base(asked, opened)))
        report = _judge(opened, beside, asked, abilities, settings.home.expanduser() / "judged", narrator)
    _show(report, html, as_json=as_json)
    if not report.passed:
        raise typer.Exit(DID_NOT_PASS)


def as_shares(pairs: list[str] | None) -> dict[str, float]:
    """Metric → share, of METRIC=SHARE. Raises JobError."""
    found = {}
    for pair in pairs or []:
        name, _, share = pair.partition("=")
        try:
            found[name] = float(share)
        except ValueError as error:
            raise JobError(f"--min {pair}: write it as METRIC=SHARE, such as --min exact_match=0.9.") from error
    return found


def write_page(page: str, path: Path) -> None:
    """Raises JobError if it can't be written."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise JobError(f"--html {path}: can't be written: {error.strerror}.") from error


def _job_base(asked: Asked, source: Source) -> str | None:
    """The job's base, where the source does not know its own."""
    if source.base is not None or asked.job_path is None:
        return None
    return base_reference(asked.job_path, asked.job)


def _judge(
    source: Source, base: BaseFiles, asked: Asked, abilities: Path | None, cache: Path, narrator: Narrator
) -> "Report":
    with narrator.step("loading the libraries"):
        prepare_environment()
        from transformers import AutoTokenizer  # noqa: PLC0415  — takes seconds

        from trainer.judging.abilities import read_abilities  # noqa: PLC0415  — with it
        from trainer.judging.judge import judge  # noqa: PLC0415  — with it
        from trainer.judging.of_job import judgement_of  # noqa: PLC0415  — with it
        from trainer.judging.values import Side  # noqa: PLC0415  — with it

    tokenizer = AutoTokenizer.from_pretrained(base.folder, trust_remote_code=False, local_files_only=True)
    task = read_task(asked, tokenizer, narrator)
    is_adapter = source.kind is Kind.LORA
    wanted = judgement_of(
        asked.job,
        task,
        Side(base.name, base.folder, fingerprint=base.base.fingerprint if base.base else None),
        Side(source.label, base.folder if is_adapter else source.folder, source.folder if is_adapter else None),
        cache=cache,
        beside=asked.beside,
        curve=source.folder.parent / "metrics.jsonl",
    )
    if abilities is not None:
        wanted = replace(wanted, abilities=read_abilities(abilities))
    return judge(wanted, narrator)


def _show(report: "Report", html: Path | None, *, as_json: bool) -> None:
    if html:
        from trainer.judging.report_page import as_html  # noqa: PLC0415  — matplotlib

        write_page(as_html(report), html)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
        return
    from trainer.judging.report import as_lines  # noqa: PLC0415  — as above

    shown = Console(highlight=False, soft_wrap=True, markup=False)
    shown.print(f"{as_lines(report)}\n{report.result.label}: {'passed' if report.passed else 'did not pass'}")
