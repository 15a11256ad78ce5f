"""What is put on a base to be trained: PEFT's configuration of each variant of LoRA, and what it needs in training.

For a recipe: `peft_config=peft_config(job, example_count=…)` and `callbacks=[…, *callbacks_for(job, resume_from)]` when
the trainer is built, `undo_casts(trainer.model)` right after it.
"""

from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig
from transformers import TrainerCallback

from trainer.job import TrainJob, Variant
from trainer.recipes.rank_allocation import RankAllocation


def peft_config(job: TrainJob, *, example_count: int) -> PeftConfig | None:
    """PEFT's configuration for the job; None where all weights are trained."""
    if not job.method.is_adapter:
        return None
    shared = {
        "lora_alpha": job.alpha,
        "lora_dropout": job.dropout_for(example_count),
        "target_modules": job.target_modules if isinstance(job.target_modules, str) else list(job.target_modules),
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    if job.variant is Variant.ADALORA:
        return AdaLoraConfig(
            **shared,
            target_r=job.rank,
            init_r=job.initial_rank,
            total_step=2,  # RankAllocation knows the true number, when training begins
            orth_reg_weight=0,  # RankAllocation's too: PEFT's is in a loss that TRL does not take
        )
    return LoraConfig(
        **shared,
        r=job.rank,
        use_rslora=job.variant is Variant.RSLORA,
        use_dora=job.variant is Variant.DORA,
        init_lora_weights="pissa" if job.variant is Variant.PISSA else True,
    )


def callbacks_for(job: TrainJob, resume_from: Path | None = None) -> list[TrainerCallback]:
    """What a variant does between the trainer's steps: AdaLoRA's ranks move from module to module."""
    return [RankAllocation(resume_from)] if job.variant is Variant.ADALORA else []


def undo_casts(model: Any) -> None:  # noqa: ANN401  — peft's or transformers' model
    """Make an adapter's weights what they were before PEFT and TRL cast them to the base's dtype.

    In float32, for a step of 1e-4 of a weight vanishes in bfloat16; nothing is lost, since they are at their beginning,
    random or zero. And AdaLoRA's count of ranks as a constant: PEFT casts by putting in another, which is trained.
    """
    for name, parameter in model.named_parameters():
        if "ranknum" in name:
            parameter.requires_grad_(requires_grad=False)
        elif "lora_" not in name or not parameter.requires_grad:
            continue
        parameter.data = parameter.data.to(torch.float32)
