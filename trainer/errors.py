"""What the trainer refuses, and why.

    LorikeetError
    └── TrainerError            the trainer's own
        ├── JobError            the job file: not YAML, an unknown key, a value that can't be, no fit for its base
        ├── DatasetError        the training data, by line number
        ├── BaseError           a base model that can't be found, read or fetched
        ├── RunError            a run folder that is in use or is not ours
        ├── AdapterError        an adapter that can't be read, or has nothing that plain LoRA could say
        ├── ConversionError     a conversion that can't be asked for so, or would lose more than it may
        ├── SourceError         what a verb is to work on: nothing of that name, or none of what it could be
        ├── ArtifactError       a merge, combination or export that can't be made as asked
        ├── JudgeError          what can't be judged as asked: a metric's command, a schema, a regression set
        ├── TrainingError       a training that can't go on: not a number any more, or no room
        └── Interrupted         a training that was told to stop, and can be gone on with

What a job, its data, its base or its folder are refused for is raised before anything is made. A message is one line:
what is wrong with what, and what would be right.
"""

from adapters import LorikeetError


class TrainerError(LorikeetError):
    """The root of the trainer's refusals."""

    code = "trainer_error"


class JobError(TrainerError):
    """The job can't be read, or can't be run as it stands."""

    code = "invalid_job"


class DatasetError(TrainerError):
    """The training data can't be learned from as it stands."""

    code = "invalid_dataset"


class BaseError(TrainerError):
    """The base model can't be found, read or fetched."""

    code = "invalid_base"


class RunError(TrainerError):
    """The run's folder can't be used."""

    code = "run_folder_unusable"


class AdapterError(TrainerError):
    """The adapter can't be read, or not be made plain LoRA."""

    code = "invalid_adapter"


class ConversionError(TrainerError):
    """The conversion can't be carried out as asked."""

    code = "conversion_refused"


class SourceError(TrainerError):
    """What a verb is to work on can't be found, or is none of what it could be."""

    code = "invalid_source"


class ArtifactError(TrainerError):
    """A merge, a combination or an export can't be made as asked."""

    code = "artifact_refused"


class TrainingError(TrainerError):
    """The training can't go on; what it made so far is not taken for finished."""

    code = "training_failed"


class Interrupted(TrainerError):  # noqa: N818  — nothing is wrong
    """A signal ended the training after a whole step and a whole checkpoint. `signal_number` is the signal's."""

    code = "interrupted"

    def __init__(self, message: str, *, signal_number: int, step: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.step = step

    @property
    def exit_code(self) -> int:
        """As a shell says it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signal_number


class JudgeError(TrainerError):
    """The result can't be judged as asked."""

    code = "judge_failed"
