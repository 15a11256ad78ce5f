"""LoRA on the CPU that is right for every row: vLLM's Punica wrapper, replaced.

vLLM 0.32's own CPU operations index the stacked weights with the row's slot, and a base row's slot is -1: Python's
last one. In a mixed batch a base request is answered with the adapter that sits, or once sat, in slot `max_loras - 1`,
and the logits path applies it even in a batch without adapters (vllm-project/vllm#48421, #49656). Here rows are grouped
by slot once a step, and each group is two plain matrix products.

Invariant: a row whose slot is -1 is never written to; a row is only ever multiplied with its own slot's weights.

Shapes, after vLLM's: `x` (rows, in), `y` (rows, sum of slices), stacked A (slots, 1, rank, in), stacked B (slots, 1,
out, rank). B already carries alpha/r: vLLM merges it in when it loads.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import linear
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase

Group = tuple[int, torch.Tensor]
"""A slot, and the rows (int64 indices) that belong to it."""


def group_rows(slots: torch.Tensor) -> list[Group]:
    """The rows of each slot that occurs, base rows (-1) left out."""
    return [(slot, (slots == slot).nonzero().squeeze(1)) for slot in torch.unique(slots).tolist() if slot >= 0]


class GroupedPunicaCPU(PunicaWrapperBase):  # type: ignore[misc]  # vLLM ships no types that strict mode accepts
    """Applies each request's own adapter, and none to a base request.

    It extends the abstract base, not vLLM's CPU class, so that no stock operation can be reached by inheritance: one
    that a later vLLM adds is missing here, and the engine says so when it starts.
    """

    def __init__(self, max_num_batched_tokens: int, max_batches: int, device: torch.device | str, **_: Any) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device)
        self.token_groups: list[Group] = []
        self.sampler_groups: list[Group] = []

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Called before a step whose rows or slots changed: group the rows anew."""
        super().update_metadata(*args, **kwargs)
        self.token_groups = group_rows(self.token_lora_indices)
        self.sampler_groups = group_rows(self.sampler_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Sequence[torch.Tensor],
        lora_b_stacked: Sequence[torch.Tensor],
        scale: float,
        output_slices: Sequence[int],
        **_: Any,
    ) -> None:
        """`y[rows, slice] += scale · x[rows] Aᵀ Bᵀ` for each slot and slice (q, k and v are slices of one layer)."""
        y, x = _as_rows(y), _as_rows(x)
        for slot, rows in self.token_groups:
            group = x.index_select(0, rows)
            start = 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                delta = linear(_times(group, a[slot, 0]), b[slot, 0, :width])
                _add(y[:, start : start + width], rows, delta, scale)
                start += width

    def add_shrink(
        self,
        y: Sequence[torch.Tensor] | torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Sequence[torch.Tensor],
        scale: float,
        **_: Any,
    ) -> None:
        """`y[i][rows] += scale · x[rows] Aᵢᵀ`: the first half, where layers are sharded and the halves run apart."""
        x = _as_rows(x)
        for slot, rows in self.token_groups:
            group = x.index_select(0, rows)
            for buffer, a in zip(y, lora_a_stacked, strict=True):
                _add(_as_rows(buffer), rows, _times(group, a[slot, 0]), scale)

    def add_expand(
        self,
        y: torch.Tensor,
        x: Sequence[torch.Tensor] | torch.Tensor,
        lora_b_stacked: Sequence[torch.Tensor],
        output_slices: Sequence[int],
        offset_start: int = 0,
        add_inputs: bool = True,
        **_: Any,
    ) -> None:
        """`y[rows, slice] += xᵢ[rows] Bᵢᵀ`: the second half. `add_inputs=False` overwrites those rows instead."""
        y = _as_rows(y)
        for slot, rows in self.token_groups:
            start = offset_start
            for shrunk, b, width in zip(x, lora_b_stacked, output_slices, strict=True):
                delta = _times(_as_rows(shrunk).index_select(0, rows), b[slot, 0, :width])
                _put(y[:, start : start + width], rows, delta, add=add_inputs)
                start += width

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **_: Any,
    ) -> None:
        """`y[rows] += x[rows] Bᵀ`, where `x` is the looked-up A. For base rows vLLM looked up slot 0: skipped."""
        y, x = _as_rows(y), _as_rows(x)
        for slot, rows in self.token_groups:
            _put(y, rows, _times(x.index_select(0, rows), lora_b_stacked[slot, 0]), add=add_inputs)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **_: Any,
    ) -> None:
        """`y[rows] += scale · x[rows] Aᵀ Bᵀ`, one row a sampled position; `y` may be padded past B's vocabulary.

        Raises:
            RuntimeError: the rows are not the sampled ones (prompt log-probabilities): whose they are is unknown here.
        """
        y, x = _as_rows(y), _as_rows(x)
        if self.sampler_groups and x.size(0) != self.sampler_indices.size(0):
            raise RuntimeError(f"{x.size(0)} rows of logits for {self.sampler_indices.size(0)} sampled positions")
        vocabulary = min(y.size(1), lora_b_stacked.size(2))
        for slot, rows in self.sampler_groups:
            delta = linear(
                _times(x.index_select(0, rows), lora_a_stacked[slot, 0]), lora_b_stacked[slot, 0, :vocabulary]
            )
            _add(y[:, :vocabulary], rows, delta, scale)

    def apply_lora_full_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        weight_stacked: torch.Tensor,
        bias_stacked: torch.Tensor,
        module_enabled: torch.Tensor,
    ) -> None:
        """Replace `y[rows]` by the adapter's whole layer (a classification head), where it brings one."""
        y, x = _as_rows(y), _as_rows(x)
        for slot, rows in self.sampler_groups:
            if bool(module_enabled[slot]):
                full = _times(x.index_select(0, rows), weight_stacked[slot, 0]) + bias_stacked[slot]
                _put(y, rows, full, add=False)


def _as_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1, tensor.size(-1))


def _times(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`x Wᵀ` in the weight's dtype (activations may be wider than the adapter)."""
    return linear(x.to(weight.dtype), weight)


def _add(y: torch.Tensor, rows: torch.Tensor, delta: torch.Tensor, scale: float) -> None:
    y.index_add_(0, rows, delta.to(y.dtype), alpha=scale)


def _put(y: torch.Tensor, rows: torch.Tensor, delta: torch.Tensor, *, add: bool) -> None:
    if add:
        y.index_add_(0, rows, delta.to(y.dtype))
    else:
        y.index_copy_(0, rows, delta.to(y.dtype))
