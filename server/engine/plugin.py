"""What vLLM calls in each of its processes before it builds anything (entry point group `vllm.general_plugins`).

Knows one thing: which Punica wrapper the CPU platform names. On CUDA it changes nothing: vLLM's own kernels are right.
"""


def register() -> None:
    """Name our CPU wrapper in place of vLLM's. May be called more than once in a process."""
    from vllm.platforms import current_platform  # noqa: PLC0415  — vLLM calls us while it imports itself

    if current_platform.is_cpu():
        type(current_platform).get_punica_wrapper = classmethod(_our_wrapper)


def _our_wrapper(_platform: type) -> str:
    return "server.engine.punica_cpu.GroupedPunicaCPU"
