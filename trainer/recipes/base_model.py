"""The base as a method holds it: in which precision, in how many bits.

What is resident, in bytes a parameter of the base (the estimator's terms):

    full, mixed         4 weights + 4 gradients + 8 Adam; autocast's bfloat16 copies (2) live within a step
    full, bfloat16      2 + 2 + 4; Adam's own states follow the weights' dtype
    full, float32       4 + 4 + 8
    lora                4 (float32) or 2 (bfloat16) of the frozen base; an adapter's weights, gradients and Adam's
                        states are float32 beside any base: 16 bytes for each of its own parameters
    qlora, nf4          0.5 + 4/64 of scales, or 0.5 + 1/64 + 4/16384 when those are quantised too; linear layers alone:
                        embeddings, norms and the head stay in `compute_dtype`
    qlora, int8         1 + 4/in_features of scales; the rest as above
    8-bit optimizers    2 in place of 8 for Adam's states, of tensors of 4096 elements and more
"""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM

from trainer.job import Method, TrainJob
from trainer.recipes.quantized import allow_training, quantization_of

Precision = Literal["mixed", "bfloat16", "float32"]


def load_base(job: TrainJob, folder: Path) -> tuple[Any, Precision]:
    """The model in `folder`, and the precision that it computes in.

    In a process of several, build the trainer's arguments first: they choose this process's device, and how weights
    are to be read.
    """
    precision = precision_of(job)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=_weights_dtype(precision),
        quantization_config=quantization_of(job, compute_dtype=_weights_dtype(precision)),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    if job.method is Method.QLORA:
        allow_training(model)
    return model, precision


def precision_of(job: TrainJob) -> Precision:
    """What `auto` comes to: of the weights, and of the sums.

    All weights are trained in float32 with bfloat16 sums where those are quick ("mixed"): a step of 2e-5 is too small
    for bfloat16's eight bits, and would be rounded away. A frozen base is not stepped, so it may be bfloat16 itself.
    """
    if job.precision != "auto":
        return job.precision
    if not has_fast_bfloat16():
        return "float32"
    return "bfloat16" if job.method.is_adapter else "mixed"


def autocasts(job: TrainJob, precision: Precision) -> bool:
    """Whether sums are to be cast to bfloat16 as they come (`bf16=` of the trainer's arguments).

    On a GPU also beside a bfloat16 base, so that the adapter's float32 weights are multiplied in bfloat16; on the CPU
    PEFT multiplies them in float32, which is as quick, and exact.
    """
    return precision == "mixed" or (precision == "bfloat16" and job.method.is_adapter and torch.cuda.is_available())


def has_fast_bfloat16() -> bool:
    """Whether the hardware multiplies matrices in bfloat16 (CUDA since Ampere, AMX).

    Without AMX, oneDNN's bfloat16 is slower than its float32: 130 against 210 GFLOP/s at the default base's shapes,
    on two cores with AVX512-BF16.
    """
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported())  # noqa: SLF001  — has no public name


def _weights_dtype(precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
