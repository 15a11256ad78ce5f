"""The CPU LoRA kernels against the definition, row by row."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.environment import prepare_environment

pytestmark = pytest.mark.engine

SLOTS, RANK, WIDTH = 3, 4, 6
SLICES = (8, 5)


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    prepare_environment()


class Layer:
    """A linear layer's stacked adapters, two slices wide, every slot filled."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.a = [torch.randn(SLOTS, 1, RANK, WIDTH, generator=generator) for _ in SLICES]
        self.b = [torch.randn(SLOTS, 1, out, RANK, generator=generator) for out in SLICES]

    def delta(self, x: torch.Tensor, slot: int) -> torch.Tensor:
        """What one row gets from its own slot: nothing for the base."""
        if slot < 0:
            return torch.zeros(sum(SLICES))
        return torch.cat([b[slot, 0] @ (a[slot, 0] @ x) for a, b in zip(self.a, self.b, strict=True)])


def wrapper_for(token_slots: list[int], sampler_slots: list[int] | None = None) -> Any:
    """Our wrapper as vLLM leaves it before a step with these rows."""
    from vllm.lora.layers import LoRAMapping

    from server.engine.punica_cpu import GroupedPunicaCPU

    sampler_slots = token_slots if sampler_slots is None else sampler_slots
    wrapper = GroupedPunicaCPU(max_num_batched_tokens=64, max_batches=64, device="cpu")
    ids = [10 + slot if slot >= 0 else 0 for slot in token_slots]
    sampled = [10 + slot if slot >= 0 else 0 for slot in sampler_slots]
    mapping = LoRAMapping(tuple(ids), tuple(sampled), is_prefill=True)
    wrapper.update_metadata(mapping, [10 + slot for slot in range(SLOTS)], SLOTS, 128)
    return wrapper


rows = st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=24)


@given(slots=rows, seed=st.integers(0, 2**16))
@settings(max_examples=60)
def test_every_row_of_a_linear_layer_gets_its_own_adapter_and_base_rows_none(slots: list[int], seed: int) -> None:
    layer, generator = Layer(seed), torch.Generator().manual_seed(seed + 1)
    x, y = (
        torch.randn(len(slots), WIDTH, generator=generator),
        torch.randn(len(slots), sum(SLICES), generator=generator),
    )
    expected = torch.stack([row + layer.delta(x[i], slots[i]) for i, row in enumerate(y)])
    untouched = y.clone()

    wrapper_for(slots).add_lora_linear(y, x, layer.a, layer.b, 1.0, SLICES)

    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    base = [i for i, slot in enumerate(slots) if slot < 0]
    assert torch.equal(y[base], untouched[base])


@given(slots=rows, seed=st.integers(0, 2**16))
@settings(max_examples=30)
def test_the_two_halves_apart_give_what_they_give_together(slots: list[int], seed: int) -> None:
    layer, x = Layer(seed), torch.randn(len(slots), WIDTH, generator=torch.Generator().manual_seed(seed))
    together, apart = torch.zeros(len(slots), sum(SLICES)), torch.zeros(len(slots), sum(SLICES))
    shrunk = torch.zeros(len(SLICES), len(slots), RANK)
    wrapper = wrapper_for(slots)

    wrapper.add_lora_linear(together, x, layer.a, layer.b, 0.5, SLICES)
    wrapper.add_shrink(shrunk, x, layer.a, 0.5)
    wrapper.add_expand(apart, shrunk, layer.b, SLICES)

    torch.testing.assert_close(apart, together)


@given(slots=rows, seed=st.integers(0, 2**16))
@settings(max_examples=30)
def test_logits_follow_the_sampled_positions_and_leave_the_base_alone(slots: list[int], seed: int) -> None:
    layer, x = Layer(seed), torch.randn(len(slots), WIDTH, generator=torch.Generator().manual_seed(seed))
    padded = torch.zeros(len(slots), SLICES[0] + 3)

    wrapper_for([-1], sampler_slots=slots).add_lora_logits(padded, x, layer.a[0], layer.b[0], 1.0)

    expected = torch.stack([layer.delta(row, slot)[: SLICES[0]] for row, slot in zip(x, slots, strict=True)])
    torch.testing.assert_close(padded[:, : SLICES[0]], expected, rtol=1e-5, atol=1e-5)
    assert not padded[:, SLICES[0] :].any()


def test_logits_whose_rows_are_unknown_are_refused_rather_than_guessed() -> None:
    layer = Layer(0)
    wrapper = wrapper_for([0, 1], sampler_slots=[0, 1])

    with pytest.raises(RuntimeError, match="5 rows of logits for 2 sampled positions"):
        wrapper.add_lora_logits(torch.zeros(5, 8), torch.zeros(5, WIDTH), layer.a[0], layer.b[0], 1.0)


def test_embedding_rows_of_the_base_are_not_touched() -> None:
    layer, looked_up = Layer(0), torch.ones(3, RANK)
    y = torch.zeros(3, SLICES[0])

    wrapper_for([-1, 2, -1]).add_lora_embedding(y, looked_up, layer.b[0])

    torch.testing.assert_close(y[1], layer.b[0][2, 0] @ looked_up[1])
    assert not y[[0, 2]].any()
