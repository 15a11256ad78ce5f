"""`lorikeet train`: from a job file to a published version."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from adapters import Caller, Registry, RegistrySettings, Version
from trainer.errors import JobError
from trainer.job import read_job
from trainer.plan import Destination, Plan, make_plan, require_destination
from trainer.progress import Narrator
from trainer.run import Run, publish, run
from trainer.run_folder import RunFolder

INTERRUPTED = 130
"""128 + SIGINT, as a shell would say it."""

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
    with settings.open() as registry:
        plan = make_plan(job, wanted, registry=registry, home=settings.home.expanduser())
        if destination:
            require_destination(destination, registry, caller)

        finished = _run_or_exit(plan, narrator, reuse=reuse)
        outcome = _publish(plan, finished, destination, registry, caller, promote=promote)
    _print(outcome, as_json=as_json)


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
    return Outcome(finished, version, is_live=adapter.live == version.number)


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
