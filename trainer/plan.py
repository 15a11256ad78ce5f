"""What a job would do, checked against its data, its base and the registry before anything is made or loaded."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from adapters import Base, Caller, Reference, Registry, require_adapter_name
from trainer.dataset import ChatDataset, read_chat
from trainer.errors import BaseError, JobError
from trainer.job import TrainJob

RECIPE = "sft/1"
"""Raised when the same job, data and base begin to give other weights: finished runs are then no longer reused."""
DIGEST_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a finished adapter is published."""

    tenant: str
    adapter: str

    @classmethod
    def parse(cls, text: str) -> "Destination":
        """Read `tenant/name`. Raises JobError, or InvalidError for a name that can't be."""
        reference = Reference.parse(text)
        if reference.tenant is None or "@" in text:
            raise JobError(f"--publish {text}: write it as TENANT/NAME, such as acme/support.")
        require_adapter_name(reference.adapter)
        return cls(reference.tenant, reference.adapter)


@dataclass(frozen=True, slots=True)
class Plan:
    """A job that can be run: its data are read, its base is there, its folder is known."""

    job: TrainJob
    dataset: ChatDataset
    base: Base
    digest: str
    """Of everything that decides the weights: the job's recipe, the data's bytes, the base's fingerprint."""
    folder: Path


def base_reference(job_path: Path, job: TrainJob) -> str:
    """The job's base as the registry knows it: a folder is meant from where the job is."""
    folder = job_path.absolute().parent / job.base
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
    _require_fit(job, base, max_rank)
    dataset = read_chat(beside_job / job.data)
    digest = _digest(job, dataset, base)
    default = home / "runs" / f"{job_path.stem}-{digest.removeprefix('sha256:')[:DIGEST_CHARACTERS]}"
    return Plan(job, dataset, base, digest, beside_job / job.output if job.output else default)


def require_destination(destination: Destination, registry: Registry, caller: Caller) -> None:
    """Raise NotFoundError unless the tenant exists: known before an hour of training, not after it."""
    registry.tenants.get(caller, destination.tenant)


def _require_fit(job: TrainJob, base: Base, max_rank: int) -> None:
    if job.rank > max_rank:
        raise JobError(f"rank {job.rank} is above the registry's max_rank of {max_rank}: it could not be served.")
    known = {path.rpartition(".")[2] for path in base.modules}
    unknown = [name for name in job.target_modules if name not in known]
    if unknown:
        raise JobError(
            f"target_modules: the base '{base.name}' has no {', '.join(unknown)}; it has {', '.join(sorted(known))}."
        )


def _digest(job: TrainJob, dataset: ChatDataset, base: Base) -> str:
    made_of = {"recipe": RECIPE, "job": job.recipe, "data": dataset.fingerprint, "base": base.fingerprint}
    return f"sha256:{hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()}"
