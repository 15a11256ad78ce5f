"""Which optimizer steps the weights: by the name that transformers knows it by, or LoRA+, which it does not know.

For a recipe: `optim=optim_name(job)` in the arguments; and once the trainer is built,
`trainer.optimizer = optimizer_for(job, trainer.model, arguments)`, where None leaves the choice to `optim`.
"""

from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import Trainer, TrainingArguments

from trainer.job import TrainJob


def optim_name(job: TrainJob) -> str:
    """What TRL and transformers call the job's optimizer (`optim=`).

    On the CPU there is nothing to page to: bitsandbytes would warn, and not page.
    """
    if job.optimizer == "adamw":
        return "adamw_torch_fused"
    if torch.cuda.is_available():
        return job.optimizer
    return {"paged_adamw_8bit": "adamw_8bit", "paged_adamw_32bit": "adamw_torch_fused"}.get(
        job.optimizer, job.optimizer
    )


def optimizer_for(job: TrainJob, model: Any, arguments: TrainingArguments) -> torch.optim.Optimizer | None:  # noqa: ANN401
    """LoRA+ (https://arxiv.org/abs/2402.12354) over the optimizer of `arguments`, for a PeftModel; else None.

    Schedules multiply each group's own rate, so B's stays the same multiple of A's from the first step to the last.
    """
    if job.lora_plus_ratio is None:
        return None
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    made: torch.optim.Optimizer = create_loraplus_optimizer(
        model,
        optimizer_class,
        loraplus_lr_ratio=job.lora_plus_ratio,
        loraplus_weight_decay=job.weight_decay,
        **options,  # lr among them
    )
    return made
