"""`lorikeet train`: from a job file to a published version."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from adapters import Caller, Registry, RegistrySettings, Version
from trainer.conversion_report import as_json as report_as_json
from trainer.conversion_report import as_lines
from trainer.errors import AdapterError, ConversionError, JobError
from trainer.job import read_job
from trainer.peft_config import PeftConfig, read_config
from trainer.plan import Destination, Plan, base_reference, make_plan, require_destination
from trainer.progress import Narrator
from trainer.run import Run, publish, run
from trainer.run_folder import RunFolder
from trainer.settings import prepare_environment

INTERRUPTED = 130
"""128 + SIGINT, as a shell would say it."""
HIGHEST_RANK = 512
"""That vLLM has kernels for."""

app = typer.Typer(no_args_is_help=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `train run` came to."""

    run: Run
    version: Version | None
    is_live: bool


@app.callback()
def train() -> None:
    """Train adapters: from a job file to a published version."""


@app.command("run", epilog="Example: lorikeet train run tickets.yaml --publish acme/tickets --promote")
def run_command(
    job: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="What to train on what; see README.md.")],
    *,
    publish_as: Annotated[
        str | None, typer.Option("--publish", metavar="TENANT/NAME", help="Publish the adapter when it is trained.")
    ] = None,
    promote: Annotated[bool, typer.Option("--promote", help="… and make it live.")] = False,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Take a finished run of the same job, data and base, if there is one.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the job; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train one adapter as a job file says."""
    settings = RegistrySettings()
    caller = Caller.operator()
    narrator = Narrator()

    # All that can be wrong is found before anything is made.
    if promote and publish_as is None:
        raise JobError("--promote needs --publish TENANT/NAME: only a published version can be live.")
    wanted = read_job(job, _as_pairs(overrides or []))
    destination = Destination.parse(publish_as) if publish_as else None
    with settings.open() as registry, registry.hold_base(caller, base_reference(job, wanted)) as base:
        plan = make_plan(job, wanted, base=base, max_rank=registry.limits.max_rank, home=settings.home.expanduser())
        if destination:
            require_destination(destination, registry, caller)

        finished = _run_or_exit(plan, narrator, reuse=reuse)
        outcome = _publish(plan, finished, destination, registry, caller, promote=promote)
    _print(outcome, as_json=as_json)


@app.command(
    "convert", epilog="Example: lorikeet train convert ./dora-adapter --to lora --out ./plain-adapter --base qwen-small"
)
def convert_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An adapter's folder as PEFT saves it.")],
    *,
    out: Annotated[Path, typer.Option(metavar="OUT_FOLDER", help="The folder to make; an empty one may be there.")],
    to: Annotated[Literal["lora"], typer.Option(help="What to make of it: plain LoRA is all there is.")] = "lora",
    base: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="What it was trained on; None: the registered base it names."),
    ] = None,
    initial: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The adapter before training; CorDA, LoRA-GA and pissa_niter_N need it."),
    ] = None,
    rank: Annotated[
        str, typer.Option(metavar="N|auto", help="The converted rank; auto: the lowest that is near enough.")
    ] = "auto",
    max_rank: Annotated[
        int | None, typer.Option(min=1, max=512, help="How high auto goes; None: the registry's (LORIKEET_MAX_RANK).")
    ] = None,
    max_error: Annotated[
        float,
        typer.Option(min=0.0, help="How far the logits may be off, as a share of what the adapter does to them."),
    ] = 0.05,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make plain LoRA, which can be served, of a DoRA, AdaLoRA or PiSSA adapter or one of mixed ranks.

    What that loses is measured: on the logits of a few fixed prompts, against the original as PEFT runs it, and layer
    by layer. Above --max-error nothing is written. OUT_FOLDER is ready to publish; README.md in it holds the figures.
    """
    narrator, settings = Narrator(), RegistrySettings()
    # All that can be judged without the libraries is judged before they load.
    wanted_rank = _as_rank(rank)
    _require_free(out)
    config = read_config(folder)
    with _held_base(base, config, settings) as (base_name, base_folder):
        with narrator.step("loading the libraries"):
            prepare_environment()
            from trainer.convert import Conversion, convert  # noqa: PLC0415  — torch and PEFT take seconds

        asked = Conversion(
            folder=folder,
            config=config,
            out=out,
            base_name=base_name,
            base_folder=base_folder,
            initial=initial,
            rank=wanted_rank,
            max_rank=max_rank or settings.max_rank,
            max_error=max_error,
        )
        report = convert(asked, narrator)
    if as_json:
        typer.echo(json.dumps({"folder": str(out), "to": to, **report_as_json(report)}, indent=2))
        return
    shown = Console(highlight=False, soft_wrap=True, markup=False)
    shown.print(f"{as_lines(report)}\nconverted   {out}: {report.method} to plain LoRA of rank {report.rank}")


@contextmanager
def _held_base(stated: str | None, config: PeftConfig, settings: RegistrySettings) -> Iterator[tuple[str, Path]]:
    """The name and the folder of the base: a folder if one is stated, else one that the registry knows.

    An adapter may be a stranger's, so its config names no folder: only a base by its name or fingerprint.
    """
    wanted = stated or config.base_model_name_or_path
    if wanted is None:
        raise AdapterError("The adapter does not say what it was trained on: give it as --base NAME|PATH.")
    if stated is not None:
        folder = Path(stated).expanduser()
        if (folder / "config.json").is_file():
            yield folder.resolve().name, folder
            return
    with settings.open() as registry, registry.hold_base(Caller.operator(), wanted) as base:
        if stated is None and wanted == base.path:
            raise AdapterError(f"The adapter names its base by a folder: if it is that, give it as --base {base.name}.")
        yield base.name, Path(base.path)


def _require_free(out: Path) -> None:
    """Raise ConversionError unless a folder can be made at `out`."""
    parent = out.absolute().parent
    try:
        if not parent.is_dir():
            raise ConversionError(f"{out}: there is no folder {parent} to make it in.")
        if out.is_symlink():
            raise ConversionError(f"{out}: is a link, which a folder can't take the place of; choose another --out.")
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise ConversionError(f"{out}: is there already, and is not an empty folder; choose another --out.")
    except OSError as error:
        raise ConversionError(f"{out}: can't be looked at: {error.strerror}.") from error


def _as_rank(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= HIGHEST_RANK:
        raise ConversionError(f"--rank {text}: write a whole number from 1 to {HIGHEST_RANK}, or auto.")
    return int(text)


def _run_or_exit(plan: Plan, narrator: Narrator, *, reuse: bool) -> Run:
    try:
        return run(plan, narrator, reuse=reuse)
    except KeyboardInterrupt:
        checkpoint = RunFolder(plan.folder).last_checkpoint
        where = f"the last checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
        narrator.say(f"interrupted: nothing was published; {where}")
        raise typer.Exit(INTERRUPTED) from None


def _publish(
    plan: Plan, finished: Run, destination: Destination | None, registry: Registry, caller: Caller, *, promote: bool
) -> Outcome:
    if destination is None:
        return Outcome(finished, None, is_live=False)
    version = publish(plan, finished, destination, registry, caller).version
    if promote:
        registry.aliases.promote(caller, version.tenant, version.adapter, version.number)
    adapter = registry.adapters.get(caller, version.tenant, version.adapter)
    return Outcome(finished, version, is_live=adapter.live_version == version.number)


def _print(outcome: Outcome, *, as_json: bool) -> None:
    record = outcome.run.record
    version = outcome.version.label if outcome.version else None
    if as_json:
        shown = {
            "run": str(outcome.run.folder.path),
            "reused": outcome.run.is_reused,
            "steps": record.steps,
            "tokens": record.tokens,
            "seconds": record.seconds,
            "final_loss": record.final_loss,
            "version": version,
            "live": outcome.is_live,
        }
        typer.echo(json.dumps(shown, indent=2))
        return
    out = Console(highlight=False, soft_wrap=True, markup=False)
    trained = (
        f"{record.steps} steps, {record.tokens} tokens, {record.seconds:.0f} s, final loss {record.final_loss:.3f}"
    )
    out.print(f"adapter    {outcome.run.folder.adapter}\ntraining   {trained}")
    if version:
        out.print(f"published  {version}{' (live)' if outcome.is_live else ''}")


def _as_pairs(overrides: list[str]) -> dict[str, str]:
    pairs = [override.partition("=") for override in overrides]
    wrong = next((key for key, equals, _ in pairs if not (key and equals)), None)
    if wrong is not None:
        raise JobError(f"--set {wrong}: write it as KEY=VALUE, such as --set rank=8.")
    return {key: value for key, _, value in pairs}
