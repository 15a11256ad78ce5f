"""What a training step keeps from its forward pass for its backward pass, in bytes: the part that grows with the batch.

Counted by reading which tensors autograd saves in transformers' Llama, PEFT's layers and our head, and proved against
`torch.autograd.graph.saved_tensors_hooks` in tests/trainer/test_memory.py. Other families are alike, but for a norm
here or there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Final

from adapters import Module
from trainer.job import Method, TrainJob, Variant
from trainer.planning.architecture import OUTPUT_PROJECTIONS, Architecture, targeted
from trainer.planning.hardware import Precision

FLOAT32: Final = 4
BFLOAT16: Final = 2
GPU_HEAD_VOCABULARY: Final = 32768
GPU_HEAD_TOKENS: Final = 4096
"""TRL's fused head works in tiles of so many tokens by so many words. (trl/kernels/chunked_logprob.py)"""


@dataclass(frozen=True, slots=True)
class Batch:
    """What goes through the model at once."""

    rows: int
    length: int
    """Tokens of the longest row: the others are padded to it."""
    learned_share: float
    """Of the tokens, how many are learned."""
    is_padded: bool
    """Whether some row is shorter, or holds several examples: then attention needs a mask."""
    has_dropout: bool

    @property
    def tokens(self) -> int:
        """With the padding."""
        return self.rows * self.length

    @property
    def learned(self) -> int:
        """Positions that the head reads."""
        return ceil(self.tokens * self.learned_share)


def sum_bytes(precision: Precision) -> int:
    """Of an element in the middle of a layer."""
    return FLOAT32 if precision == "float32" else BFLOAT16


def stream_bytes(precision: Precision) -> int:
    """Of an element of what passes from layer to layer: autocast leaves it as the weights are."""
    return BFLOAT16 if precision == "bfloat16" else FLOAT32


def of_layers(job: TrainJob, architecture: Architecture, batch: Batch, precision: Precision, *, has_gpu: bool) -> int:
    """What all layers keep, nothing being recomputed."""
    per_layer = _layer_bytes_per_token(job, architecture, batch, precision)
    inputs = _linear_input_bytes_per_token(job, architecture, batch, precision, has_gpu=has_gpu)
    return batch.tokens * (architecture.layers * per_layer + inputs) + _masks(architecture, batch, precision)


def with_checkpoints(
    job: TrainJob, architecture: Architecture, batch: Batch, precision: Precision, *, has_gpu: bool
) -> int:
    """What is kept when each layer's activations are recomputed: all layers' inputs, one layer's own (Chen 2016)."""
    kept = architecture.layers * batch.tokens * architecture.hidden * stream_bytes(precision)
    one = of_layers(job, architecture, batch, precision, has_gpu=has_gpu) // max(architecture.layers, 1)
    return kept + one


def of_head(architecture: Architecture, batch: Batch, precision: Precision, *, has_gpu: bool) -> int:
    """From the last hidden state to the loss and back, over the learned positions.

    On the CPU (recipes/cpu_head.py) all logits at once: themselves, their log-softmax, and in the backward pass the
    gradients of both; at the most three of these are there together, in float32, and beside bfloat16 the logits in
    their own dtype. On a GPU TRL's fused head: one tile, and the hidden states with their float32 gradient.
    """
    if has_gpu:
        tile = min(batch.learned, GPU_HEAD_TOKENS) * min(architecture.vocabulary, GPU_HEAD_VOCABULARY)
        return tile * sum_bytes(precision) + batch.learned * architecture.hidden * (sum_bytes(precision) + FLOAT32)
    words = batch.learned * architecture.vocabulary
    cast = 0 if precision == "float32" else sum_bytes(precision)
    return words * (3 * FLOAT32 + cast) + 2 * batch.learned * architecture.hidden * sum_bytes(precision)


def _layer_bytes_per_token(job: TrainJob, architecture: Architecture, batch: Batch, precision: Precision) -> int:
    """Of a layer's own operations, whatever is trained in it.

    - Each of the two norms keeps its input (h, in float32: bfloat16 is cast) and 1/rms; if its weights are trained, the
      normalised h too. (modeling_llama.py, LlamaRMSNorm)
    - Attention (scaled_dot_product_attention): queries, keys, values, its result and a float32 a head (log-sum-exp).
      Under a mask, keys and values are first repeated to the width of the queries. (integrations/sdpa_attention.py)
    - The MLP, down(silu(gate) · up): gate, silu(gate) and up, each of its width.
    """
    width = sum_bytes(precision)
    trains_all = job.method is Method.FULL
    norms = 2 * (FLOAT32 * architecture.hidden + FLOAT32)
    if trains_all:
        norms += 2 * stream_bytes(precision) * architecture.hidden
    keys = architecture.attention_width if batch.is_padded else architecture.key_value_width
    attention = width * (2 * architecture.attention_width + 2 * keys) + FLOAT32 * architecture.heads
    return norms + attention + 3 * width * architecture.intermediate


def _linear_input_bytes_per_token(
    job: TrainJob, architecture: Architecture, batch: Batch, precision: Precision, *, has_gpu: bool
) -> int:
    """What linear layers keep of their inputs, over all layers.

    A frozen one keeps nothing; a trained one, and an adapter's A, its input, to work out its own gradient from. Layers
    that read the same tensor (q, k, v; gate, up) share it, and o reads what attention has kept anyway, unless each
    makes a copy: by a cast (float32 adapters on bfloat16; autocast) or by dropout, which keeps its own mask as well.
    B keeps the r numbers between. DoRA keeps what the base and what the adapter gave. (peft/tuners/lora/layer.py,
    dora.py)
    """
    if job.method is Method.FULL:
        casts = precision == "mixed"
        return _read(architecture.modules, sum_bytes(precision), copies=casts)
    targets = targeted(job, architecture)
    width = BFLOAT16 if has_gpu or precision == "mixed" else FLOAT32  # autocast brings A's input down again
    copies = batch.has_dropout or sum_bytes(precision) != width or has_gpu
    kept = _read(targets, width, copies=copies)
    if batch.has_dropout:
        kept += sum(module.in_features for module in targets.values()) * (1 if has_gpu else FLOAT32)
    kept += len(targets) * job.initial_rank * width
    if job.variant is Variant.DORA:
        kept += sum(module.out_features for module in targets.values()) * (sum_bytes(precision) + width)
    return kept


def _read(modules: Mapping[str, Module], width: int, *, copies: bool) -> int:
    """Bytes a token that the inputs of these linear layers take."""
    if copies:
        return width * sum(module.in_features for module in modules.values())
    read: dict[str, int] = {}
    for path, module in modules.items():
        block, _, name = path.rpartition(".")
        is_attention = "att" in block.rpartition(".")[2]
        if name in OUTPUT_PROJECTIONS:
            if not is_attention:
                read[path] = module.in_features
        else:
            read[block] = module.in_features
    return width * sum(read.values())


def _masks(architecture: Architecture, batch: Batch, precision: Precision) -> int:
    """The mask that attention is given, as numbers: rows × length², kept by each layer for itself."""
    if not batch.is_padded:
        return 0
    return architecture.layers * batch.rows * batch.length**2 * sum_bytes(precision)
