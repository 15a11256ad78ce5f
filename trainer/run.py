"""One run, from a plan to a finished folder: check the data, train, convert, judge."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trainer.errors import RunError
from trainer.judging.report import Report, refusal, summary
from trainer.plan import Plan
from trainer.progress import Narrator
from trainer.recipes.carrying_out import carry_out
from trainer.recipes.spread import Spread
from trainer.recipes.task import Task
from trainer.recipes.task_files import Outcome
from trainer.run_folder import RunFolder, RunRecord, Started, remove
from trainer.settings import prepare_environment

if TYPE_CHECKING:
    from trainer.checking import Checked

LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate")


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: trained now, or earlier and found again."""

    folder: RunFolder
    record: RunRecord
    report: Report | None
    """None: it was not judged."""
    is_reused: bool

    @property
    def refusal(self) -> str | None:
        """Why `live` may not move to what it made; None: it may."""
        return refusal(self.report) if self.report else None

    @property
    def summary(self) -> dict[str, Any] | None:
        """The report in short, for the version's origin."""
        return summary(self.report) if self.report else None


def run(plan: Plan, narrator: Narrator, *, goes_on: bool, restarts: bool = False, spread: Spread | None = None) -> Run:
    """Carry the plan out. With `goes_on`, a finished run of it is taken, and an interrupted one is gone on with.

    Raises:
        JobError, DatasetError: the base can't render the data, or the data are not sound; nothing was made.
        RunError: the folder is in use or not a run's; holds another run's work, and `restarts` is not set; or holds
            an interrupted run of the plan, and neither flag is set.
        Interrupted: a signal came; the run can be gone on with.
        TrainingError, ConversionError, JudgeError: it can't be finished so; its checkpoints stay.
    """
    folder = RunFolder(plan.folder)
    folder.require_ours()
    if goes_on and (record := folder.finished(plan.digest)):
        narrator.say(f"reusing the finished run of the same job, data and base: {folder.path}")
        if record.judge != _rules(plan):
            record = _judge_again(plan, folder, record, narrator)
        return Run(folder, record, _report_in(folder), is_reused=True)
    if folder.holds_another(plan.digest) and not restarts:
        raise RunError(
            f"{folder.path}: holds a run of another job, data or base: choose another output, or throw it away with "
            "--restart."
        )
    is_interrupted = folder.is_interrupted(plan.digest)
    if is_interrupted and not (goes_on or restarts):
        raise RunError(
            f"{folder.path}: holds an interrupted run of this job: go on with `lorikeet train resume {folder.path}` "
            "or --reuse, or throw it away with --restart."
        )
    checkpoint = folder.last_checkpoint if is_interrupted and goes_on else None
    record = _carry_out(plan, folder, narrator, checkpoint, spread)
    return Run(folder, record, _report_in(folder), is_reused=False)


def require_same_plan(folder: RunFolder, plan: Plan) -> None:
    """Raise RunError unless the run in `folder` was started as the plan says: a run never goes on as another."""
    started = folder.started_as()
    if started.digest == plan.digest:
        return
    reason = "the job's keys, or the answers' schema, say something else now"
    if started.dataset_fingerprint != plan.dataset_fingerprint:
        reason = f"the data ({plan.job.data}) are others than those that it was started with"
    elif started.base_fingerprint != plan.base.fingerprint:
        reason = f"the base '{plan.base.name}' is another than the one that it was started with"
    raise RunError(f"{folder.path}: can't be gone on with: {reason}. Train anew into another output.")


def _carry_out(
    plan: Plan, folder: RunFolder, narrator: Narrator, checkpoint: Path | None, spread: Spread | None
) -> RunRecord:
    started = time.monotonic()

    # The data, as this base's tokens; unsound, they stop it before anything is made
    checked = _check(plan, narrator)

    with folder.held():
        if checkpoint is None:
            folder.begin(_as_started(plan))
        _write_data(checked, folder)

        # The training
        with folder.metrics(after_step=_step_of(checkpoint)) as metrics, narrator.training() as show:
            task = Task(
                job=plan.job,
                train=checked.train,
                held_out=checked.held_out,
                base_folder=Path(plan.base.path),
                checkpoints=folder.checkpoints,
                trackers=folder.trackers,
                listeners=(metrics.write, show),
                resume_from=checkpoint,
            )
            with folder.staged(folder.trained_in(plan.job)) as out:
                outcome = carry_out(task, out=out, base_name=plan.base.name, spread=spread, workers=folder.task)

        # What a server loads, and what it is worth
        conversion = _convert(plan, folder, narrator)
        _judge(plan, folder, checked, narrator)
        record = _as_record(plan, outcome, conversion, seconds=round(time.monotonic() - started, 1))
        folder.finish(record)
    return record


def _check(plan: Plan, narrator: Narrator) -> "Checked":
    # The libraries take seconds to load, and only a run that trains needs them.
    with narrator.step("loading the training libraries"):
        prepare_environment()
        from transformers import AutoTokenizer  # noqa: PLC0415  — see above

        from trainer.checking import check, require_sound  # noqa: PLC0415  — see above

    tokenizer = AutoTokenizer.from_pretrained(plan.base.path, trust_remote_code=False, local_files_only=True)
    checked = check(plan.split, plan.job, tokenizer, narrator)
    require_sound(checked)
    for finding in checked.findings:
        narrator.say(str(finding))
    trained_on = checked.report.train
    total, learned = (one.total if one else 0 for one in (trained_on.lengths, trained_on.learned))
    narrator.say(f"{trained_on.rows} examples, {total} tokens, {learned} of them learned")
    return checked


def _write_data(checked: "Checked", folder: RunFolder) -> None:
    from trainer.checking.showing import as_html  # noqa: PLC0415  — heavy
    from trainer.dataset import write_rows  # noqa: PLC0415  — heavy

    folder.write("data.json", checked.report.model_dump_json(indent=2) + "\n")
    folder.write("data.html", as_html(checked.report))
    write_rows(checked.split.held_out, folder.path / "held_out.jsonl")


def _convert(plan: Plan, folder: RunFolder, narrator: Narrator) -> dict[str, Any] | None:
    """Plain LoRA of what no server loads, and what that lost."""
    if plan.job.is_served_as_trained:
        return None
    from trainer.conversion.convert import Conversion, convert  # noqa: PLC0415  — heavy
    from trainer.conversion.peft_config import read_config  # noqa: PLC0415  — heavy
    from trainer.conversion.report import as_json  # noqa: PLC0415  — heavy

    remove(folder.adapter)
    asked = Conversion(
        folder=folder.trained,
        config=read_config(folder.trained),
        out=folder.adapter,
        base_name=plan.base.name,
        base_folder=Path(plan.base.path),
        initial=None,
        rank=None,
        max_rank=plan.max_rank,
        max_error=plan.job.max_conversion_error,
    )
    return as_json(convert(asked, narrator))


def _judge(plan: Plan, folder: RunFolder, checked: "Checked", narrator: Narrator) -> None:
    """Base beside result, written as report.json and report.html; no earlier report is left to speak for it."""
    for name in ("report.json", "report.html"):
        remove(folder.path / name)
    if not plan.job.judge.enabled:
        return
    from trainer.judging.judge import judge  # noqa: PLC0415  — heavy
    from trainer.judging.of_job import judgement_of, task_of  # noqa: PLC0415  — heavy
    from trainer.judging.report_page import as_html  # noqa: PLC0415  — heavy
    from trainer.judging.values import Side  # noqa: PLC0415  — heavy

    base_folder = Path(plan.base.path)
    base = Side(plan.base.name, base_folder, fingerprint=plan.base.fingerprint)
    result = (
        Side(folder.path.name, base_folder, adapter=folder.adapter)
        if plan.job.method.is_adapter
        else Side(folder.path.name, folder.model)
    )
    held_out = checked.split.held_out
    task = task_of(plan.job, held_out.rows, checked.held_out, checked.split.answer_schema)
    curve, beside = folder.path / "metrics.jsonl", plan.job_file.parent
    asked = judgement_of(plan.job, task, base, result, cache=plan.judged, beside=beside, curve=curve)
    report = judge(asked, narrator)
    folder.write("report.html", as_html(report))
    folder.write("report.json", report.model_dump_json(indent=2) + "\n")


def _judge_again(plan: Plan, folder: RunFolder, record: RunRecord, narrator: Narrator) -> RunRecord:
    """By the rules that the job has now; the weights stay."""
    checked = _check(plan, narrator)
    with folder.held():
        _judge(plan, folder, checked, narrator)
        judged = record.model_copy(update={"judge": _rules(plan)})
        folder.finish(judged)
    return judged


def _report_in(folder: RunFolder) -> Report | None:
    path = folder.path / "report.json"
    try:
        return Report.model_validate_json(path.read_bytes()) if path.exists() else None
    except ValidationError as error:
        raise RunError(f"{path}: is damaged: judge anew with `lorikeet train run … --restart`.") from error


def _rules(plan: Plan) -> dict[str, Any]:
    return plan.job.judge.model_dump(mode="json")


def _as_started(plan: Plan) -> Started:
    return Started(
        digest=plan.digest,
        job_file=str(plan.job_file),
        dataset_fingerprint=plan.dataset_fingerprint,
        base=plan.base.name,
        base_fingerprint=plan.base.fingerprint,
        stated=plan.job.model_dump(mode="json", exclude_unset=True),
        job=plan.job.model_dump(mode="json"),
    )


def _as_record(plan: Plan, outcome: Outcome, conversion: dict[str, Any] | None, *, seconds: float) -> RunRecord:
    return RunRecord(
        status="finished",
        digest=plan.digest,
        dataset_fingerprint=plan.dataset_fingerprint,
        base_fingerprint=plan.base.fingerprint,
        base=plan.base.name,
        method=plan.job.method.value,
        precision=outcome.precision,
        steps=outcome.last.step,
        tokens=outcome.last.tokens,
        final_loss=outcome.last.loss,
        held_out_loss=outcome.held_out_loss,
        kept_step=outcome.kept_step,
        seconds=seconds,
        training_seconds=outcome.last.elapsed_seconds,
        finished_at=datetime.now(UTC),
        versions={library: version(library) for library in LIBRARIES},
        judge=_rules(plan),
        conversion=conversion,
    )


def _step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
