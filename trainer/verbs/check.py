"""`lorikeet train check`: everything that comes before a step is trained, and no step. Writes nothing but --html."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from adapters import Caller, RegistrySettings
from trainer.checking import Checked, check
from trainer.checking.showing import as_html, show
from trainer.dataset import Preference, Severity, Split, split_data
from trainer.dataset.hub import PREFIX
from trainer.errors import DatasetError, JobError
from trainer.job import TrainJob
from trainer.job_file import job_of, read_job
from trainer.plan import base_reference
from trainer.progress import Narrator
from trainer.settings import prepare_environment
from trainer.supervision import Tokenizer
from trainer.verbs.arguments import AsJson, Overrides, as_pairs
from trainer.verbs.held_out import NO_BASE

EXAMPLE = "Example: lorikeet train check tickets.jsonl --base smollm2-135m-instruct --html tickets.html"


def check_command(
    what: Annotated[
        str, typer.Argument(metavar="JOB.YAML|DATA", help="A job, or its data alone: a file, or hub:OWNER/NAME.")
    ],
    *,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH", help="In whose tokens; None: the job's, or for data alone what needs no base."
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as a page, with plots.")] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Check the data of a job before anything is trained: exit code 0 if they are sound, 2 if not."""
    narrator = Narrator()
    job, beside, job_path = _job(what, base, as_pairs(overrides))

    # Read, split, judged
    split = split_data(job, beside)
    with _tokenizer(job, job_path, narrator, has_base=job.base != NO_BASE) as tokenizer:
        checked = check(split, _for_rows(job, split, is_job=job_path is not None), tokenizer, narrator)

    # Shown
    if html:
        _write(as_html(checked.report), html)
    if as_json:
        typer.echo(checked.report.model_dump_json(indent=2))
    else:
        show(checked.report, Console(highlight=False, soft_wrap=True))
    _require_sound(checked)


def _job(what: str, base: str | None, overrides: dict[str, str]) -> tuple[TrainJob, Path, Path | None]:
    """The job, what its names are relative to, and its file; data alone make a job of defaults."""
    if Path(what).suffix.lower() in {".yaml", ".yml"}:
        job_path = Path(what)
        job = read_job(job_path, overrides | ({"base": base} if base else {}))
        return job, job_path.absolute().parent, job_path
    fields = {"base": base or NO_BASE, "data": what if what.startswith(PREFIX) else str(Path(what).absolute())}
    return job_of(fields, overrides, what), Path.cwd(), None


def _for_rows(job: TrainJob, split: Split, *, is_job: bool) -> TrainJob:
    """The job, if its objective learns from such rows; of data alone, the one that does."""
    if not split.train.rows:
        return job
    objective = "dpo" if isinstance(split.train.rows[0], Preference) else "sft"
    if is_job and objective != job.objective:
        raise JobError(
            f"{split.train.name}: these rows are for objective: {objective}, and the job says {job.objective}."
        )
    return job.model_copy(update={"objective": objective})


@contextmanager
def _tokenizer(
    job: TrainJob, job_path: Path | None, narrator: Narrator, *, has_base: bool
) -> Iterator[Tokenizer | None]:
    """The base's, from its folder or out of the registry; None without a base."""
    if not has_base:
        narrator.say("no base: what needs its tokens is not checked; name one with --base")
        yield None
        return
    here = job_path or Path.cwd() / "job.yaml"
    wanted = base_reference(here, job)
    if "/" in wanted and (Path(wanted) / "tokenizer_config.json").is_file():  # a bare name is the registry's
        yield _read_tokenizer(Path(wanted))
        return
    with RegistrySettings().open() as registry, registry.hold_base(Caller.operator(), wanted) as held:
        yield _read_tokenizer(Path(held.path))


def _read_tokenizer(folder: Path) -> Tokenizer:
    prepare_environment()
    from transformers import AutoTokenizer  # noqa: PLC0415  — heavy

    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return tokenizer


def _write(page: str, path: Path) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise JobError(f"--html {path}: can't be written: {error.strerror}.") from error


def _require_sound(checked: Checked) -> None:
    """What the errors are has been shown; here it is only said that there are some."""
    codes = [finding.code for finding in checked.findings if finding.severity is Severity.ERROR]
    if codes:
        raise DatasetError(
            f"{checked.split.train.name}: the data can't be trained on as they stand: {', '.join(codes)}."
        )
