"""What a base is made of, as far as its size and the memory of its training go; `model_config` reads it.

Knows nothing of files or torch. Sizes are numbers of elements, not bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from adapters import Module
from trainer.job import Method, TrainJob, Variant
from trainer.planning.servability import resolve_targets

OUTPUT_PROJECTIONS: Final = frozenset({"o_proj", "out_proj", "dense", "c_proj", "wo", "down_proj", "fc2", "w2"})
"""The last linear layer of attention and of the MLP, by its families' names: it reads what the block has made, where
the others read the block's input."""


@dataclass(frozen=True)
class Architecture:
    """A causal language model, taken to be what nearly all are: `layers` alike of attention and MLP, and a head."""

    name: str
    family: str
    """transformers' model_type."""
    modules: Mapping[str, Module]
    """Every linear layer but the head, by its full path."""
    total_parameters: int
    """Tied ones once."""
    linear_parameters: int
    """Of `modules`, weights alone: what QLoRA holds in few bits."""
    active_parameters: int
    """Of the matrices that a token is multiplied with, but the head: in a mixture of experts, those of its few."""
    layers: int
    hidden: int
    intermediate: int
    """What of the MLP's width a token passes."""
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    is_tied: bool
    """Whether head and embedding are one."""
    config: Mapping[str, Any]
    """config.json."""

    @cached_property
    def attention_width(self) -> int:
        """Of the queries of a token; keys and values have `key_value_width`."""
        return self.heads * self.head_size

    @cached_property
    def key_value_width(self) -> int:
        """Of the keys of a token, and of its values."""
        return self.key_value_heads * self.head_size

    @cached_property
    def largest_module(self) -> int:
        """Elements of the largest linear layer: as a whole in memory when a weight is dequantised."""
        return max((module.in_features * module.out_features for module in self.modules.values()), default=0)


def targeted(job: TrainJob, architecture: Architecture) -> Mapping[str, Module]:
    """The layers that the job puts an adapter on; none where all weights are trained."""
    if not job.method.is_adapter:
        return {}
    return {path: architecture.modules[path] for path in resolve_targets(job, architecture.modules)}


def trainable_parameters(job: TrainJob, architecture: Architecture) -> int:
    """What the optimizer moves.

    LoRA on a layer (in → out) has A (r × in) and B (out × r): r · (in + out). [Hu 2021, §4.1] rsLoRA and PiSSA differ
    in scale and beginning only. DoRA adds a magnitude for each output. [Liu 2024, eq. 5] AdaLoRA's A, B are of the
    rank it begins with, and between them is the diagonal E of as many elements. [Zhang 2023, eq. 3] All as PEFT
    counts them.
    """
    if job.method is Method.FULL:
        return architecture.total_parameters
    rank = job.initial_rank
    return sum(
        rank * (module.in_features + module.out_features) + _extra(job.variant, rank, module)
        for module in targeted(job, architecture).values()
    )


def _extra(variant: Variant, rank: int, module: Module) -> int:
    match variant:
        case Variant.DORA:
            return module.out_features
        case Variant.ADALORA:
            return rank
        case _:
            return 0
