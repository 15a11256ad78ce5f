"""What vLLM's worker processes answer when the engine asks them about themselves (vLLM's `worker_extension_cls`).

Knows one question: which Punica wrappers are really in place. The answer comes from the process that computes.
"""

from typing import Any


class WorkerChecks:
    """Mixed into vLLM's worker class; its methods are called by name through `collective_rpc`."""

    model_runner: Any

    def punica_wrappers(self) -> list[str]:
        """The class of every Punica wrapper this worker's LoRA layers use."""
        manager = self.model_runner.lora_manager._adapter_manager  # noqa: SLF001  — vLLM has no public way to ask
        wrappers = manager.punica_wrapper_mapping.values()
        return [f"{type(wrapper).__module__}.{type(wrapper).__qualname__}" for wrapper in wrappers]
