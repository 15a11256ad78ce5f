"""What is trained and what stays as it is, counted: the adapter and nothing else, or everything."""

from typing import Any

from peft.tuners.lora import LoraLayer

from trainer.errors import TrainingError
from trainer.job import TrainJob


def require_frozen_base(model: Any, job: TrainJob) -> int:  # noqa: ANN401
    """How many parameters are trained.

    Raises:
        TrainingError: a part of the base would be trained beside the adapter, or a part of the whole would not be.
    """
    trained = {name: each.numel() for name, each in model.named_parameters() if each.requires_grad}
    if not job.method.is_adapter:
        frozen = [name for name, each in model.named_parameters() if not each.requires_grad]
        if frozen:
            raise TrainingError(
                f"method full trains all weights, but {frozen[0]} and {len(frozen) - 1} more are frozen."
            )
        return sum(trained.values())
    stray = sorted(name for name in trained if "lora_" not in name)
    if stray:
        raise TrainingError(f"the base must stay as it is, but {stray[0]} and {len(stray) - 1} more would be trained.")
    expected = sum(_adapter_size(module) for module in model.modules() if isinstance(module, LoraLayer))
    if sum(trained.values()) != expected or not expected:
        raise TrainingError(f"the adapter is {expected} parameters, but {sum(trained.values())} would be trained.")
    return expected


def _adapter_size(layer: Any) -> int:  # noqa: ANN401
    """All that PEFT put on a layer, whether or not it is to be trained."""
    holders = [getattr(layer, name) for name in dict.fromkeys(layer.adapter_layer_names) if hasattr(layer, name)]
    return sum(parameter.numel() for holder in holders for parameter in holder.parameters())
