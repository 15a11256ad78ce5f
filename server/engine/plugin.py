"""What vLLM calls in each of its processes before it builds anything (entry point group `vllm.general_plugins`).

Knows three things: that they end with the process that started them; which Punica wrapper the CPU platform names; and
that adapters lie on the CPU there, whatever their layer has become of. On CUDA vLLM's own kernels are right.
"""

from typing import Any

from server.engine.processes import end_with_parent


def register() -> None:
    """Name our CPU wrapper in place of vLLM's. May be called more than once in a process."""
    end_with_parent()
    from vllm.platforms import current_platform  # noqa: PLC0415  — vLLM calls us while it imports itself

    if current_platform.is_cpu():
        type(current_platform).get_punica_wrapper = classmethod(_our_wrapper)


def _our_wrapper(_platform: type) -> str:
    # Asked before any layer is wrapped. vLLM asks a layer's weights where they lie, and one in 8 bits has none left on
    # the CPU once oneDNN has packed them (0.32: `'NoneType' object has no attribute 'device'`).
    from vllm.lora.layers import base_linear  # noqa: PLC0415  — vLLM calls us while it imports itself

    base_linear._get_lora_device = _on_the_cpu  # noqa: SLF001  — there is no other way in
    return "server.engine.punica_cpu.GroupedPunicaCPU"


def _on_the_cpu(_layer: object) -> Any:  # noqa: ANN401  — torch's, which is not imported here
    import torch  # noqa: PLC0415  — with vLLM

    return torch.device("cpu")
