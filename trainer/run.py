"""One run, from a job file to a finished folder, and from there to a published version."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from adapters import Base, Caller, Published, Registry, folder_members
from trainer.plan import Destination, Plan
from trainer.progress import Narrator
from trainer.run_folder import RunFolder, RunRecord
from trainer.settings import prepare_environment
from trainer.supervision import supervise


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: trained now, or earlier and found again."""

    folder: RunFolder
    record: RunRecord
    is_reused: bool


def run(plan: Plan, narrator: Narrator, *, reuse: bool) -> Run:
    """Carry the plan out, or find the finished run of the same job, data and base.

    Raises:
        JobError, DatasetError: the base can't render the data, or a line is too long; nothing was made.
        RunError: the folder is in use or not a run's.
    """
    folder = RunFolder(plan.folder)
    if reuse and (record := folder.finished(plan.digest)):
        narrator.say(f"reusing the finished run of the same job, data and base: {folder.path}")
        return Run(folder, record, is_reused=True)
    return Run(folder, _train(plan, folder, narrator), is_reused=False)


def publish(plan: Plan, finished: Run, destination: Destination, registry: Registry, caller: Caller) -> Published:
    """Hand the adapter to the registry; the same bytes again are the same version."""
    record = finished.record
    return registry.versions.publish(
        caller,
        destination.tenant,
        destination.adapter,
        folder_members(finished.folder.adapter),
        base=plan.base.fingerprint,
        parents=_parents(plan.base, destination),
        origin={
            "method": plan.job.method,
            "base": plan.base.name,
            "run": finished.folder.path.name,
            "run_digest": record.digest,
            "dataset_fingerprint": record.dataset_fingerprint,
            "chat_template_digest": plan.base.chat_template_digest,
            "base_precision": record.precision,
            "seed": plan.job.seed,
            "steps": record.steps,
            "final_loss": record.final_loss,
        },
    )


def _parents(base: Base, destination: Destination) -> tuple[str, ...]:
    """The model that it was trained on, if that is a version of the same tenant; the origin names any other."""
    is_own = base.version is not None and base.version.startswith(f"{destination.tenant}/")
    return (base.version,) if base.version is not None and is_own else ()


def _train(plan: Plan, folder: RunFolder, narrator: Narrator) -> RunRecord:
    # The libraries take seconds to load, and only a run that trains needs them.
    with narrator.step("loading the training libraries"):
        prepare_environment()
        from transformers import AutoTokenizer  # noqa: PLC0415  — see above

        from trainer.recipes import sft  # noqa: PLC0415  — see above

    # The data, as this base's tokens
    tokenizer = AutoTokenizer.from_pretrained(plan.base.path, trust_remote_code=False, local_files_only=True)
    examples = supervise(tokenizer, plan.dataset, max_length=plan.job.max_length)
    narrator.say(
        f"{len(examples)} examples, {sum(len(example.input_ids) for example in examples)} tokens, "
        f"{sum(example.learned for example in examples)} of them learned"
    )

    # The training
    started = time.monotonic()
    with folder.started(plan.job):
        with folder.metrics() as metrics, narrator.training() as show:
            trained = sft.train(
                plan.job,
                examples,
                base_folder=Path(plan.base.path),
                tokenizer=tokenizer,
                checkpoints=folder.checkpoints,
                listeners=(metrics.write, show),
            )
        with folder.staged_adapter() as staging:
            sft.save(trained.adapter, staging, base_name=plan.base.name)
        record = RunRecord(
            status="finished",
            digest=plan.digest,
            dataset_fingerprint=plan.dataset.fingerprint,
            base_fingerprint=plan.base.fingerprint,
            base=plan.base.name,
            precision=trained.precision,
            steps=trained.last.step,
            tokens=trained.last.tokens,
            final_loss=trained.last.loss,
            seconds=round(time.monotonic() - started, 1),
            finished_at=datetime.now(UTC),
            versions={library: version(library) for library in sft.LIBRARIES},
        )
        folder.finish(record)
    return record
