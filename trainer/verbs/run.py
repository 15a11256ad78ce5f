"""`lorikeet train run` and `resume`: from a job file to a published version."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from adapters import Caller, Registry, RegistrySettings, Version
from trainer.errors import ConversionError, Interrupted, JobError, JudgeError
from trainer.job import TrainJob
from trainer.job_file import job_of, read_job
from trainer.plan import Plan, base_reference, make_plan
from trainer.progress import Narrator
from trainer.publish import Destination, publish, require_destination
from trainer.publish import promote as promote_version
from trainer.recipes.spread import Spread, read_spread, require_possible
from trainer.run import Run, require_same_plan, run
from trainer.run_folder import RunFolder
from trainer.verbs.arguments import AsJson, Overrides, Promote, PublishAs, as_pairs

RUN_EXAMPLE = "Example: lorikeet train run tickets.yaml --publish acme/tickets --promote"
RESUME_EXAMPLE = "Example: lorikeet train resume ~/.lorikeet/runs/tickets-0123456789ab --publish acme/tickets"
INTERRUPTED = 130
"""128 + SIGINT, as a shell would say it."""
REFUSED = 1
"""All was carried out, but the report speaks against making it live."""


Accelerate = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Over several processes, as this accelerate config says; deploy/accelerate/ has some."
    ),
]


@dataclass(frozen=True, slots=True)
class Request:
    """What a job is carried out as."""

    job_file: Path
    job: TrainJob
    publish_as: str | None
    promote: bool
    goes_on: bool
    restarts: bool = False
    spread: Spread | None = None
    """Over which processes; None: in this one."""
    folder: RunFolder | None = None
    """The run that must be the one gone on with."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What it came to."""

    run: Run
    version: Version | None
    is_live: bool
    refusal: str | None
    """Why `live` did not move, if it should have."""


def run_command(
    job: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="What to train on what; see deploy/TRAINING.md.")],
    *,
    publish_as: PublishAs = None,
    promote: Promote = False,
    reuse: Annotated[
        bool,
        typer.Option(
            "--reuse", help="Take a finished run of the same job, data and base; go on with an interrupted one."
        ),
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away an interrupted run of this job.")] = False,
    accelerate: Accelerate = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train one adapter or model as a job file says: check the data, train, convert, judge, publish."""
    wanted = read_job(job, as_pairs(overrides))
    spread = read_spread(accelerate) if accelerate else None
    request = Request(job, wanted, publish_as, promote, goes_on=reuse, restarts=restart, spread=spread)
    _finish(request, as_json=as_json)


def resume_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="The folder of an interrupted run.")],
    *,
    publish_as: PublishAs = None,
    promote: Promote = False,
    accelerate: Accelerate = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Go on with an interrupted run, to the same weights as if nothing had happened.

    Job, data and base must be the ones that it was started with; how it is judged may be replaced by --set judge.…
    """
    run_folder = RunFolder(folder.absolute())
    started = run_folder.started_as()
    here = {"output": json.dumps(str(run_folder.path))}
    wanted = job_of(started.stated, as_pairs(overrides) | here, str(folder / "job.yaml"))
    spread = read_spread(accelerate) if accelerate else None
    request = Request(
        Path(started.job_file), wanted, publish_as, promote, goes_on=True, spread=spread, folder=run_folder
    )
    _finish(request, as_json=as_json)


def _finish(request: Request, *, as_json: bool) -> None:
    outcome = _carry_through(request, Narrator())
    _print(outcome, as_json=as_json)
    if outcome.refusal:
        typer.echo(f"not live: {outcome.refusal}", err=True)
        raise typer.Exit(REFUSED)


def _carry_through(request: Request, narrator: Narrator) -> Outcome:
    settings, caller = RegistrySettings(), Caller.operator()

    # All that can be wrong is found before anything is made.
    if request.promote and request.publish_as is None:
        raise JobError("--promote needs --publish TENANT/NAME: only a published version can be live.")
    destination = Destination.parse(request.publish_as) if request.publish_as else None
    if request.spread:
        require_possible(request.job, request.spread)
    reference = base_reference(request.job_file, request.job)
    with settings.open() as registry, registry.hold_base(caller, reference) as base:
        home, max_rank = settings.home.expanduser(), registry.limits.max_rank
        plan = make_plan(request.job_file, request.job, base=base, max_rank=max_rank, home=home)
        if destination:
            require_destination(destination, registry, caller)
        if request.folder:
            require_same_plan(request.folder, plan)

        for warning in plan.warnings:
            narrator.say(f"advice: {warning}")

        finished = _run_or_exit(plan, request, narrator)
        if destination is None:
            return Outcome(finished, None, is_live=False, refusal=None)
        version = publish(plan, finished, destination, registry, caller).version
        if request.promote and finished.report is None:
            narrator.say("not judged (judge.enabled: false): what becomes live was not measured")
        refusal = promote_version(version, finished, registry, caller) if request.promote else None
        return Outcome(finished, version, is_live=_is_live(version, registry, caller), refusal=refusal)


def _run_or_exit(plan: Plan, request: Request, narrator: Narrator) -> Run:
    try:
        with _ending_at_sigterm():
            return run(plan, narrator, goes_on=request.goes_on, restarts=request.restarts, spread=request.spread)
    except Interrupted as error:
        narrator.say(error.message)
        _say_how_to_go_on(RunFolder(plan.folder), narrator)
        raise typer.Exit(error.exit_code) from None
    except (ConversionError, JudgeError):
        narrator.say("the training itself is done: when this is mended, `lorikeet train run … --reuse` goes on from it")
        raise
    except KeyboardInterrupt:  # before or after the training itself
        _say_how_to_go_on(RunFolder(plan.folder), narrator)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _ending_at_sigterm() -> Iterator[None]:
    """Unwind as Ctrl-C does; while a recipe trains, its own handlers write a checkpoint first."""
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(f"Stopped by {signal.Signals(number).name}.", signal_number=number, step=0)


def _is_live(version: Version, registry: Registry, caller: Caller) -> bool:
    return registry.adapters.get(caller, version.tenant, version.adapter).live_version == version.number


def _say_how_to_go_on(folder: RunFolder, narrator: Narrator) -> None:
    checkpoint = folder.last_checkpoint
    where = (
        f"the last checkpoint is {checkpoint}; go on with: lorikeet train resume {folder.path}"
        if checkpoint
        else "there is no checkpoint yet"
    )
    narrator.say(f"interrupted: nothing was published; {where}")


def _print(outcome: Outcome, *, as_json: bool) -> None:
    record, folder = outcome.run.record, outcome.run.folder
    version = outcome.version.label if outcome.version else None
    if as_json:
        shown = {
            "run": str(folder.path),
            "reused": outcome.run.is_reused,
            "steps": record.steps,
            "tokens": record.tokens,
            "seconds": record.seconds,
            "final_loss": record.final_loss,
            "version": version,
            "live": outcome.is_live,
            "not_live_because": outcome.refusal,
            "report": outcome.run.summary,
        }
        typer.echo(json.dumps(shown, indent=2))
        return
    out = Console(highlight=False, soft_wrap=True, markup=False)
    trained = (
        f"{record.steps} steps, {record.tokens} tokens, {record.seconds:.0f} s, final loss {record.final_loss:.3f}"
    )
    out.print(f"{folder.made.name:<10} {folder.made}\ntraining   {trained}")
    if version:
        out.print(f"published  {version}{' (live)' if outcome.is_live else ''}")
