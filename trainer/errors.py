"""What the trainer refuses, and why.

    LorikeetError
    └── TrainerError            the trainer's own
        ├── JobError            the job file: not YAML, an unknown key, a value that can't be, no fit for its base
        ├── DatasetError        the training data, by line number
        ├── BaseError           a base model that can't be found, read or fetched
        └── RunError            a run folder that is in use or is not ours

All but a lost connection are raised before anything is made. A message is one line: what is wrong with what, and what
would be right.
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
