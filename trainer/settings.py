"""The trainer's edge to the environment: what the libraries below must be told before they are imported.

Where things lie (`LORIKEET_HOME`) is the registry's to say: `adapters.RegistrySettings`.
"""

import logging
import os
import sys

QUIET = {
    # TRL reports the architecture and the device of every training to the hub unless it is told not to.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Ours is the only progress bar.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "BITSANDBYTES_NOWELCOME": "1",
    # The tokenizer's threads and a later fork would deadlock; it warns about that otherwise.
    "TOKENIZERS_PARALLELISM": "false",
}

SHARED_MACHINE = {
    # OpenMP's threads sleep while they wait, instead of spinning: slower alone (136 against 181 tokens/s in one
    # run on two cores), but with another process on one of them four times as fast (117 against 27).
    "OMP_WAIT_POLICY": "passive",
}


def prepare_environment() -> None:
    """Turn off the libraries' telemetry and chatter. Call before any of them is imported; harmless when repeated."""
    os.environ.update(QUIET)
    for name, value in SHARED_MACHINE.items():
        os.environ.setdefault(name, value)
    # bitsandbytes, which PEFT imports if it is there, would fetch code from the hub at import, on CPUs with AVX512-BF16
    # and through the package `kernels`: there is none, as far as this process sees. Its absence is told as an error.
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    # The hub client reads the variable once, at import: catch up if somebody was faster.
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]


def is_sharded() -> bool:
    """Whether `accelerate launch` started this process as one of several that share out the weights (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in {"true", "1"}


def place_in_run() -> tuple[int, int]:
    """Which of the processes of a run this is, from 0, and how many there are: as torchrun says it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def environment_of_processes(*, threads: int, uses_cpu: bool) -> dict[str, str]:
    """What processes that are launched for a run are to be told, beside what this one was."""
    told = {"OMP_NUM_THREADS": str(threads)} | ({"ACCELERATE_USE_CPU": "true"} if uses_cpu else {})
    return dict(os.environ) | told
