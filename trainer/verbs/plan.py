"""`lorikeet train plan`: what a job comes to, from the base's config.json alone. Reads no weights, writes nothing."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from adapters import Base, Caller, RegistrySettings
from trainer.errors import BaseError, JobError, TrainerError
from trainer.explained import explained
from trainer.job import Method, TrainJob, Variant
from trainer.job_file import job_of, read_job
from trainer.plan import base_reference
from trainer.planning.articles import DISAGREEMENTS
from trainer.planning.duration import finished_speeds
from trainer.planning.facts import Goal, Policy
from trainer.planning.hardware import Hardware, parse_memory
from trainer.planning.outlook import Shape, assumed_shape, make_outlook
from trainer.planning.servability import Complaint, servability
from trainer.planning.showing import Shown, as_json, show
from trainer.settings import prepare_environment
from trainer.verbs.arguments import AsJson, Overrides, as_pairs

EXAMPLE = "Example: lorikeet train plan --base ./llama-3.1-8b/config.json --method lora --rank 16 --memory 24GiB"
NO_DATA = "none"
"""What a job's data are called where there is only talk of them."""
MISTAKES = frozenset({"unknown_target", "head_or_embedding", "no_linear_layers"})
"""Complaints that leave nothing to plan."""


@dataclass(frozen=True, slots=True)
class Known:
    """Where the base is described, and what the registry knows it as, if it does."""

    description: Path
    base: Base | None


def plan_command(
    job: Annotated[Path | None, typer.Argument(metavar="[JOB.YAML]", help="A job; flags win over its keys.")] = None,
    *,
    base: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="A registered base, a checkpoint's folder, or a config.json."),
    ] = None,
    method: Annotated[Method | None, typer.Option(help="What is trained.")] = None,
    variant: Annotated[Variant | None, typer.Option(help="Which kind of LoRA.")] = None,
    rank: Annotated[int | None, typer.Option(help="LoRA's rank.")] = None,
    targets: Annotated[
        str | None, typer.Option(metavar="NAME,…|all-linear", help="The layers that get an adapter.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples at once.")] = None,
    max_length: Annotated[int | None, typer.Option(help="In tokens.")] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="How many are trained on.")] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What there is, such as 24GiB: of a GPU, unless --device cpu.")
    ] = None,
    device: Annotated[
        Literal["cpu", "gpu"] | None,
        typer.Option(
            help="What it is planned for; None: a GPU if --memory is given or there is one, else this machine."
        ),
    ] = None,
    price_per_hour: Annotated[float | None, typer.Option(min=0.0, help="Of the machine, in any currency.")] = None,
    goal: Annotated[Goal | None, typer.Option(help="What it is for; bears on the recommendation.")] = None,
    policy: Annotated[Policy, typer.Option(help="With which method to begin.")] = Policy.LORA_FIRST,
    articles: Annotated[
        bool, typer.Option("--articles", help="Also show where the articles disagree, and what holds.")
    ] = False,
    overrides: Overrides = None,
    as_json_: AsJson = False,
) -> None:
    """Say what a job comes to before anything is loaded: parameters, memory by term, time, cost, and what is wise."""
    flags = {
        "base": base,
        "method": method,
        "variant": variant,
        "rank": rank,
        "target_modules": _as_targets(targets),
        "batch_size": batch_size,
        "max_length": max_length,
    }
    stated = {key: json.dumps(value) for key, value in flags.items() if value is not None}
    wanted = _job(job, as_pairs(overrides) | stated)
    settings = RegistrySettings()
    here = job if job and base is None else Path.cwd() / "job.yaml"
    with _described(here, wanted, settings) as known:
        prepare_environment()
        from trainer.planning.model_config import read_architecture  # noqa: PLC0415  — torch and transformers take seconds

        architecture = read_architecture(known.description)
        complaints = servability(wanted, architecture.modules, architecture.config, settings.max_rank)
        _require_targets(complaints)
        outlook = make_outlook(
            wanted,
            architecture,
            _hardware(memory, device),
            _shape(job, wanted, examples),
            measured=_measured(known, wanted, settings, is_here=memory is None and device is None),
            cores=os.cpu_count() or 1,
            goal=goal,
            policy=policy,
        )
    shown = Shown(outlook, complaints, DISAGREEMENTS, explained(wanted, outlook.shape.example_count), price_per_hour)
    if as_json_:
        typer.echo(json.dumps(as_json(shown), indent=2))
    else:
        show(shown, Console(highlight=False), with_articles=articles)


def _as_targets(text: str | None) -> str | list[str] | None:
    if text is None or text == "all-linear":
        return text
    return [name.strip() for name in text.split(",") if name.strip()]


def _job(path: Path | None, keys: dict[str, str]) -> TrainJob:
    if path is not None:
        return read_job(path, keys)
    if "base" not in keys:
        raise JobError("Say what to plan: a job file, or a base with --base NAME|PATH.")
    return job_of({"data": NO_DATA}, keys, "plan")


@contextmanager
def _described(here: Path, job: TrainJob, settings: RegistrySettings) -> Iterator[Known]:
    """Where the base's config.json is: at a path if it is one, else where the registry has it."""
    place = here.absolute().parent / Path(job.base).expanduser()
    if (place / "config.json").is_file() or place.is_file():
        yield Known(place, None)
        return
    if place.suffix == ".json" or ("/" in job.base and place.is_dir()):
        raise BaseError(f"{job.base}: there is no config.json there.")
    with settings.open() as registry, registry.hold_base(Caller.operator(), base_reference(here, job)) as base:
        yield Known(Path(base.path), base)


def _require_targets(complaints: tuple[Complaint, ...]) -> None:
    mistake = next((complaint for complaint in complaints if complaint.code in MISTAKES), None)
    if mistake is not None:
        raise JobError(mistake.sentence)


def _hardware(memory: str | None, device: Literal["cpu", "gpu"] | None) -> Hardware:
    """What is planned for: the machine that this runs on, unless something else is named."""
    import torch  # noqa: PLC0415  — takes a second

    from trainer.recipes.base_model import has_fast_bfloat16  # noqa: PLC0415
    from trainer.recipes.held_memory import limit_bytes  # noqa: PLC0415

    has_gpu = torch.cuda.is_available()
    wants_gpu = device == "gpu" or (device is None and (has_gpu or memory is not None))
    stated = parse_memory(memory) if memory else None
    if not wants_gpu:
        name = "this machine's CPU" if stated is None else f"a CPU with {memory}"
        return Hardware(False, stated or limit_bytes(), has_fast_bfloat16() and not has_gpu, name)
    if has_gpu and stated is None:
        return Hardware(True, limit_bytes(), True, torch.cuda.get_device_name())
    return Hardware(True, stated, True, f"a GPU with {memory}" if memory else "a GPU of unknown memory")


def _shape(path: Path | None, job: TrainJob, examples: int | None) -> Shape:
    """Of the data, if they are named and can be read; a plan is made without them, too."""
    if examples is None and path is not None:
        from trainer.dataset import split_data  # noqa: PLC0415

        try:
            examples = len(split_data(job, path.absolute().parent).train.rows)
        except TrainerError as error:
            typer.echo(f"  the number of examples is not known: {error.message}", err=True)
    return assumed_shape(job, examples)


def _measured(known: Known, job: TrainJob, settings: RegistrySettings, *, is_here: bool) -> tuple[float, ...]:
    """Speeds of runs that tell something of this one: on this machine, of this base."""
    if not is_here or known.base is None:
        return ()
    return finished_speeds(settings.home.expanduser() / "runs", job, known.base.fingerprint)
