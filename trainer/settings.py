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
    # bitsandbytes, which PEFT imports if it is there, reports a missing optional package as an error.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    # The hub client reads the variable once, at import: catch up if somebody was faster.
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]
