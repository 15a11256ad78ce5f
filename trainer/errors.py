"""What the trainer refuses, and why.

    LorikeetError
    └── TrainerError            the trainer's own
        ├── JobError            the job file: not YAML, an unknown key, a value that can't be, no fit for its base
        ├── DatasetError        the training data, by line number
        ├── BaseError           a base model that can't be found, read or fetched
        ├── RunError            a run folder that is in use or is not ours
        ├── AdapterError        an adapter that can't be read, or has nothing that plain LoRA could say
        └── ConversionError     a conversion that can't be asked for so, or would lose more than it may

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


class AdapterError(TrainerError):
    """The adapter can't be read, or not be made plain LoRA."""

    code = "invalid_adapter"


class ConversionError(TrainerError):
    """The conversion can't be carried out as asked."""

    code = "conversion_refused"
