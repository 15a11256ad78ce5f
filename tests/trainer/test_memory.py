from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tests.trainer.public_configs import LLAMA_2_7B, LLAMA_31_8B, SMALL, write_config
from trainer.bench.memory import GRID, METHODS
from trainer.job import Method, TrainJob
from trainer.job_file import job_of
from trainer.planning.activations import Batch, of_layers
from trainer.planning.architecture import Architecture
from trainer.planning.hardware import Hardware, Precision
from trainer.planning.memory import Memory, estimate, weight_bytes
from trainer.planning.model_config import read_architecture
from trainer.recipes.peft_methods import peft_config

CPU = Hardware(has_gpu=False, memory_bytes=None, has_fast_bfloat16=False, name="a CPU")
GPU = Hardware(has_gpu=True, memory_bytes=None, has_fast_bfloat16=True, name="a GPU")
GB = 1e9


def job(**keys: object) -> TrainJob:
    return job_of({"base": "b", "data": "d", **keys}, {}, "test")


def batch(rows: int = 2, length: int = 128, *, is_padded: bool = True) -> Batch:
    return Batch(rows=rows, length=length, learned_share=0.5, is_padded=is_padded, has_dropout=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Architecture:
    return read_architecture(write_config(tmp_path_factory.mktemp("small"), SMALL))


@pytest.fixture(scope="module")
def llama_2_7b(tmp_path_factory: pytest.TempPathFactory) -> Architecture:
    return read_architecture(write_config(tmp_path_factory.mktemp("llama2"), LLAMA_2_7B))


@pytest.fixture(scope="module")
def llama_31_8b(tmp_path_factory: pytest.TempPathFactory) -> Architecture:
    return read_architecture(write_config(tmp_path_factory.mktemp("llama31"), LLAMA_31_8B))


# --- what does not depend on the batch --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hardware", "precision", "per_parameter"),
    [
        (GPU, "auto", 16),  # mixed: float32 master weights
        (GPU, "mixed", 16),
        (CPU, "auto", 16),
        (GPU, "bfloat16", 8),
        (CPU, "bfloat16", 8),
    ],
)
def test_all_weights_take_16_bytes_a_parameter_and_8_in_pure_bfloat16(
    hardware: Hardware, precision: str, per_parameter: int, llama_31_8b: Architecture
) -> None:
    found = estimate(job(method="full", precision=precision), llama_31_8b, hardware, batch())
    assert found.static == per_parameter * llama_31_8b.total_parameters


def test_8_bit_states_of_bfloat16_weights_take_a_quarter_less(llama_2_7b: Architecture) -> None:
    found = estimate(job(method="full", precision="bfloat16", optimizer="adamw_8bit"), llama_2_7b, GPU, batch())
    assert found.static / GB == pytest.approx(40.4, rel=0.01)


def test_nf4_with_double_quantisation_saves_0_37_bits_a_parameter(llama_2_7b: Architecture) -> None:
    plain, double = (
        weight_bytes(job(method="qlora", double_quantization=twice), llama_2_7b, "bfloat16") for twice in (False, True)
    )
    assert 8 * (plain - double) / llama_2_7b.linear_parameters == pytest.approx(0.373, abs=0.001)
    assert double / GB == pytest.approx(3.9, rel=0.03)


def test_embeddings_norms_and_head_are_not_quantised(llama_2_7b: Architecture) -> None:
    rest = llama_2_7b.total_parameters - llama_2_7b.linear_parameters
    linear = weight_bytes(job(method="qlora"), llama_2_7b, "bfloat16") - 2 * rest
    assert 8 * linear / llama_2_7b.linear_parameters == pytest.approx(4.127, abs=0.001)


def test_int8_takes_a_byte_a_parameter_of_the_linear_layers(llama_2_7b: Architecture) -> None:
    rest = llama_2_7b.total_parameters - llama_2_7b.linear_parameters
    linear = weight_bytes(job(method="qlora", quantization="int8"), llama_2_7b, "bfloat16") - 2 * rest
    assert linear / llama_2_7b.linear_parameters == pytest.approx(1.0, abs=0.002)


def test_only_adapters_have_gradients_and_states_where_the_base_is_frozen(llama_31_8b: Architecture) -> None:
    found = estimate(job(rank=16), llama_31_8b, GPU, batch())
    assert found.adapters + found.gradients + found.optimizer == 16 * 41_943_040
    assert found.weights == 2 * llama_31_8b.total_parameters


@pytest.mark.parametrize(
    ("keys", "card_gib"),
    [
        ({"method": "qlora", "batch_size": 1}, 12),  # what the articles and torchtune say of 7 and 8 billion
        ({"method": "lora", "batch_size": 2}, 24),
        ({"method": "full", "precision": "bfloat16", "optimizer": "paged_adamw_8bit", "batch_size": 1}, 48),
    ],
)
def test_what_is_known_to_fit_on_a_card_is_estimated_to(
    keys: dict[str, Any], card_gib: int, llama_2_7b: Architecture
) -> None:
    asked = job(**keys)
    assert estimate(asked, llama_2_7b, GPU, batch(asked.batch_size, 1024)).total < card_gib * 2**30


def test_all_weights_of_7_billion_parameters_do_not_fit_on_80_gib(llama_2_7b: Architecture) -> None:
    assert estimate(job(method="full"), llama_2_7b, GPU, batch(1, 1024)).total > 80 * 2**30


# --- what a step keeps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "keys",
    [
        {"method": "full"},
        {"rank": 4, "dropout": 0.0},
        {"rank": 4, "dropout": 0.1},
        {"rank": 4, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]},
        {"rank": 4, "dropout": 0.1, "target_modules": ["q_proj", "down_proj"]},
    ],
    ids=str,
)
def test_the_formula_counts_every_byte_that_autograd_keeps(
    keys: dict[str, object], precision: Precision, *, is_padded: bool, small: Architecture
) -> None:
    asked = job(**keys)
    rows = Batch(2, 24, 0.5, is_padded, has_dropout=asked.method.is_adapter and asked.dropout_for(0) > 0)
    kept = _kept_by_a_layer(asked, precision, rows)
    assert of_layers(asked, small, rows, precision, has_gpu=False) == small.layers * kept


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_dora_keeps_what_the_base_and_the_adapter_gave_as_well(precision: Precision, small: Architecture) -> None:
    asked = job(rank=4, dropout=0.0, variant="dora")
    rows = Batch(4, 200, 0.5, is_padded=False, has_dropout=False)
    kept = small.layers * _kept_by_a_layer(asked, precision, rows)
    # It also makes an identity and a sum of the size of each weight, which are gone before the next layer.
    assert of_layers(asked, small, rows, precision, has_gpu=False) == pytest.approx(kept, rel=0.05)


# --- the whole --------------------------------------------------------------------------------------------------------

JOBS = st.builds(
    lambda method, rank, optimizer, size: (
        {"method": method, "batch_size": size, "optimizer": optimizer} | ({} if method == "full" else {"rank": rank})
    ),
    st.sampled_from([method.value for method in Method]),
    st.integers(1, 64),
    st.sampled_from(["adamw", "adamw_8bit", "paged_adamw_32bit"]),
    st.integers(1, 8),
)
HARDWARE = st.sampled_from([CPU, GPU])


@given(keys=JOBS, hardware=HARDWARE, length=st.integers(1, 4096))
def test_the_terms_add_up_and_none_is_negative(
    keys: dict[str, Any], hardware: Hardware, length: int, small: Architecture
) -> None:
    found = estimate(job(**keys), small, hardware, batch(keys["batch_size"], length))
    assert found.total == sum(asdict(found).values()) == found.as_json()["total"]
    assert min(asdict(found).values()) >= 0


@given(keys=JOBS, hardware=HARDWARE, rows=st.integers(1, 32), more=st.integers(0, 32), length=st.integers(1, 2048))
def test_more_rows_never_take_less(
    keys: dict[str, Any], hardware: Hardware, rows: int, more: int, length: int, small: Architecture
) -> None:
    few, many = (estimate(job(**keys), small, hardware, batch(count, length)) for count in (rows, rows + more))
    assert many.total >= few.total


@given(keys=JOBS, hardware=HARDWARE, length=st.integers(1, 2048), more=st.integers(0, 2048))
def test_longer_rows_never_take_less(
    keys: dict[str, Any], hardware: Hardware, length: int, more: int, small: Architecture
) -> None:
    short, long = (estimate(job(**keys), small, hardware, batch(2, size)) for size in (length, length + more))
    assert long.total >= short.total


@given(rank=st.integers(1, 128), more=st.integers(0, 128), hardware=HARDWARE)
def test_a_higher_rank_never_takes_less(rank: int, more: int, hardware: Hardware, small: Architecture) -> None:
    low, high = (estimate(job(rank=value), small, hardware, batch()) for value in (rank, rank + more))
    assert high.total >= low.total


@pytest.mark.parametrize("hardware", [CPU, GPU])
def test_each_method_holds_less_than_the_one_before(hardware: Hardware, llama_31_8b: Architecture) -> None:
    full, lora, qlora = (
        estimate(job(method=method), llama_31_8b, hardware, batch(1, 512)).total for method in ("full", "lora", "qlora")
    )
    assert full > lora > qlora


def test_recomputing_activations_takes_less(llama_31_8b: Architecture) -> None:
    kept, recomputed = (
        estimate(job(gradient_checkpointing=value), llama_31_8b, CPU, batch(4, 1024)).total for value in (False, True)
    )
    assert recomputed < kept


def test_padding_costs_a_mask(llama_31_8b: Architecture) -> None:
    padded = batch(4, 1024)
    with_mask, without = (
        estimate(job(), llama_31_8b, CPU, rows) for rows in (padded, replace(padded, is_padded=False))
    )
    assert with_mask.activations > without.activations


def test_the_grid_of_the_bench_holds_every_method_at_every_size() -> None:
    for size in ("8M", "41M", "135M"):
        assert all(any(cell.size == size and cell.keys == keys for cell in GRID) for keys in METHODS)
    assert all(cell.job.batch_size == cell.rows for cell in GRID)


def test_a_memory_says_what_is_static() -> None:
    found = Memory(1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert (found.static, found.total) == (10, 45)


def _kept_by_a_layer(asked: TrainJob, precision: Precision, rows: Batch) -> int:
    """Bytes that autograd saves for each layer, found by two models of unlike depth."""
    few, many = (_kept(asked, precision, rows, layers) for layers in (2, 4))
    return (many - few) // 2


def _kept(asked: TrainJob, precision: Precision, rows: Batch, layers: int) -> int:
    fields = {key: value for key, value in SMALL.items() if key != "model_type"} | {"num_hidden_layers": layers}
    model: Any = LlamaForCausalLM(LlamaConfig(**fields)).to(getattr(torch, precision))
    config = peft_config(asked, example_count=0)
    body = (get_peft_model(model, config).get_base_model() if config else model).model
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            kept[address] = tensor  # held, so that no other gets its address
        return tensor

    tokens = torch.randint(0, 90, (rows.rows, rows.length))
    mask = torch.ones_like(tokens)
    if rows.is_padded:
        mask[0, -3:] = 0
    body.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        body(input_ids=tokens, attention_mask=mask, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_a_bare_config_is_all_an_estimate_needs(tmp_path: Path) -> None:
    path = write_config(tmp_path, SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    assert estimate(job(), read_architecture(path), CPU, batch()).total > 0
