"""What a job would do, checked against its data, its base and the registry before anything is made or loaded."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from adapters import Base
from trainer.dataset import Split, read_dataset
from trainer.errors import BaseError, JobError
from trainer.job import TrainJob
from trainer.planning.advice import advise
from trainer.planning.facts import Advice, Facts
from trainer.planning.servability import servability

RECIPE = "sft/2"
"""Raised when the same job, data and base begin to give other weights: finished runs are then no longer reused."""
DIGEST_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class Plan:
    """A job that can be run: its data are read, its base is there, its folder is known."""

    job_file: Path
    """Absolute. The job's relative names are meant from beside it."""
    job: TrainJob
    split: Split
    base: Base
    digest: str
    """Of everything that decides the weights: the job's recipe, the data's bytes, the base's fingerprint."""
    folder: Path
    judged: Path
    """Where what was measured of bases is kept."""
    max_rank: int
    """The registry's."""
    warnings: tuple[str, ...]
    """What is good to know before the training, and stops nothing."""

    @property
    def dataset_fingerprint(self) -> str:
        """Of what is trained on and what is held out."""
        return _digest_of([self.split.train.fingerprint, self.split.held_out.fingerprint])


def base_reference(job_path: Path, job: TrainJob) -> str:
    """The job's base as the registry knows it: a folder is meant from where the job is."""
    folder = job_path.absolute().parent / Path(job.base).expanduser()
    return str(folder.resolve()) if "/" in job.base and folder.is_dir() else job.base


def make_plan(job_path: Path, job: TrainJob, *, base: Base, max_rank: int, home: Path) -> Plan:
    """Check the job against what there is. `base` must be held for as long as the plan is carried out.

    Raises:
        JobError: a rank above `max_rank`, or modules that the base does not have.
        DatasetError: missing or broken data.
        BaseError: the base's files are gone.
    """
    beside_job = job_path.absolute().parent
    if not Path(base.path).is_dir():
        raise BaseError(f"The files of the base '{base.name}' are gone: run `lorikeet base` again.")
    complaints = _complaints(job, base, max_rank)
    split = read_dataset(job, beside_job)
    facts = Facts(parameters=base.parameter_count, example_count=len(split.train.rows))
    warnings = (*complaints, *map(_advised, advise(job, facts)))
    digest = _digest(job, split, base)
    default = home / "runs" / f"{job_path.stem}-{digest.removeprefix('sha256:')[:DIGEST_CHARACTERS]}"
    folder = beside_job / Path(job.output).expanduser() if job.output else default
    return Plan(job_path.absolute(), job, split, base, digest, folder, home / "judged", max_rank, warnings)


def _complaints(job: TrainJob, base: Base, max_rank: int) -> tuple[str, ...]:
    """What a server will have to say of the result: the worst is raised now, the rest is told."""
    complaints = servability(job, base.modules, base.config, max_rank)
    fatal = [complaint.sentence for complaint in complaints if complaint.is_fatal]
    if fatal:
        raise JobError(" ".join(fatal))
    return tuple(complaint.sentence for complaint in complaints)


def _advised(advice: Advice) -> str:
    return f"{advice.sentence} ({advice.source})" + (f" Try `{advice.fix}`." if advice.fix else "")


def _digest(job: TrainJob, split: Split, base: Base) -> str:
    sides = [split.train.fingerprint, split.held_out.fingerprint]
    made_of = {"recipe": RECIPE, "job": job.recipe, "data": sides, "base": base.fingerprint}
    return _digest_of(made_of | {"answer_schema": split.answer_schema})  # it may drop rows


def _digest_of(value: object) -> str:
    return f"sha256:{hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()}"
