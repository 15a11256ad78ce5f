"""A frozen base in 4 or 8 bits, through bitsandbytes: how it is asked for, and what is broken in it.

The only module that knows bitsandbytes. PEFT imports it whenever it is installed; `prepare_environment` sees to it that
the import is quiet and fetches nothing.
"""

from typing import Any

import torch
from transformers import BitsAndBytesConfig

from trainer.job import Method, TrainJob
from trainer.settings import is_sharded


def quantization_of(job: TrainJob, *, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What transformers is asked for; None where the base is held as it is.

    NF4's weights are multiplied in `compute_dtype`: the library's default, float32, is its slow path on GPUs.
    """
    if job.method is not Method.QLORA:
        return None
    if job.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=job.double_quantization,
        bnb_4bit_compute_dtype=compute_dtype,
        # FSDP shards only what lies in the weights' own dtype. The bytes are the same, but nothing else may cast them.
        bnb_4bit_quant_storage=compute_dtype if is_sharded() else torch.uint8,
    )


def allow_training(model: Any) -> None:  # noqa: ANN401  — transformers' model
    """Undo what keeps bitsandbytes 0.50.2 from training on the CPU.

    4 bits: with AVX512-BF16, a layer that is called without gradients, as in an evaluation, packs its weight in place
    and never unpacks it. From then on a kernel answers that has no backward, so nothing before the last layer learns
    (a warning is all one sees); and that fails for out_features that are no multiple of 32.

    8 bits: what DoRA reads of a layer's weight, PEFT puts back without its scales, and the next call would lose them.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt  # noqa: PLC0415  — only where a base is quantised

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, Linear8bitLt) and module.weight.CB is not None:
            module.init_8bit_state()  # as its first call would: DoRA reads the scales before that
            module.register_forward_pre_hook(_keep_scales)


def _keep_scales(module: Any, _inputs: object) -> None:  # noqa: ANN401  — Linear8bitLt
    """Let the layer go on with the scales that it has, where its weight was replaced by one that has none."""
    if module.weight.CB is not None and module.weight.SCB is None:
        module.weight.CB = None
