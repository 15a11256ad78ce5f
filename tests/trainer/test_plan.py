import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import compute_flops_per_token

from adapters import open_registry
from tests.trainer.conftest import Command, WriteJob
from tests.trainer.public_configs import LLAMA_2_7B, LLAMA_31_8B, LLAMA_31_70B, SMALL, SMOLLM2_135M, write_config
from trainer.errors import BaseError, JobError
from trainer.job import TrainJob, Variant
from trainer.job_file import job_of
from trainer.planning.activations import Batch
from trainer.planning.architecture import Architecture, trainable_parameters
from trainer.planning.duration import CARDS, flops_per_token, step_count
from trainer.planning.hardware import parse_memory
from trainer.planning.model_config import read_architecture
from trainer.recipes.peft_methods import peft_config


def job(**keys: object) -> TrainJob:
    return job_of({"base": "b", "data": "d", **keys}, {}, "test")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Architecture:
    return read_architecture(write_config(tmp_path_factory.mktemp("small"), SMALL))


# --- parameters -------------------------------------------------------------------------------------------------------


def test_rank_16_on_all_linear_layers_of_llama_3_1_8b_trains_41_943_040_parameters(
    tmp_path: Path, lorikeet: Command
) -> None:
    config = write_config(tmp_path / "bare", LLAMA_31_8B)
    found = lorikeet(
        "train", "plan", "--base", config, "--method", "lora", "--rank", 16, "--targets", "all-linear", "--json"
    ).json
    assert found["trainable_parameters"] == 41_943_040
    assert found["total_parameters"] == 8_030_261_248


def test_rank_8_on_q_and_v_of_llama_2_7b_trains_4_194_304_parameters(tmp_path: Path, lorikeet: Command) -> None:
    write_config(tmp_path / "bare", LLAMA_2_7B)
    found = lorikeet(
        "train", "plan", "--base", tmp_path / "bare", "--rank", 8, "--targets", "q_proj,v_proj", "--json"
    ).json
    assert found["trainable_parameters"] == 4_194_304
    assert found["total_parameters"] == 6_738_415_616


def test_70_billion_parameters_are_counted_without_their_weights(tmp_path: Path) -> None:
    assert read_architecture(write_config(tmp_path, LLAMA_31_70B)).total_parameters == 70_553_706_496


def test_tied_weights_are_counted_once(tmp_path: Path) -> None:
    assert read_architecture(write_config(tmp_path, SMOLLM2_135M)).total_parameters == 134_515_008


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_the_count_is_what_peft_itself_makes_trainable(variant: Variant, targets: object, small: Architecture) -> None:
    asked = job(rank=6, variant=variant.value, target_modules=targets)
    with torch.device("cpu"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SMALL))
    config = peft_config(asked, example_count=10)
    assert config is not None
    trainable, _ = get_peft_model(model, config).get_nb_trainable_parameters()
    assert trainable_parameters(asked, small) == trainable


@given(rank=st.integers(1, 64), more=st.integers(1, 64), variant=st.sampled_from(list(Variant)))
def test_a_higher_rank_trains_more(rank: int, more: int, variant: Variant, small: Architecture) -> None:
    low, high = (job(rank=value, variant=variant.value) for value in (rank, rank + more))
    assert trainable_parameters(high, small) > trainable_parameters(low, small)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma3_text", "mixtral", "phi3", "gpt2"])
def test_families_of_other_shapes_are_read_too(family: str, tmp_path: Path) -> None:
    found = read_architecture(write_config(tmp_path, {"model_type": family}))
    assert found.total_parameters >= found.active_parameters > 0
    assert found.modules


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "llamma"}, "is it 'llama'?"),
        ({"hidden_size": 64}, "has no model_type"),
        ([1], "has no model_type"),
        ({"model_type": "t5"}, "can build"),
        ({"model_type": "llama", "hidden_size": "wide"}, "hidden_size"),
        ({"model_type": "llama", "num_attention_heads": 0}, "can build"),
        ({"model_type": "llama", "hidden_size": -64}, "can build"),
    ],
)
def test_a_config_that_describes_no_model_is_refused_in_one_line(
    fields: object, said: str, tmp_path: Path, lorikeet: Command
) -> None:
    found = lorikeet("train", "plan", "--base", write_config(tmp_path / "bare", fields))
    assert found.code == 2
    assert said in found.err
    assert found.err.count("\n") == 1


def test_a_config_that_is_no_json_is_refused_in_one_line(tmp_path: Path, lorikeet: Command) -> None:
    (tmp_path / "config.json").write_text("{")
    found = lorikeet("train", "plan", "--base", tmp_path / "config.json")
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert "not JSON" in found.err


def test_a_folder_without_a_config_is_refused(tmp_path: Path, lorikeet: Command) -> None:
    (tmp_path / "empty").mkdir()
    found = lorikeet("train", "plan", "--base", tmp_path / "empty")
    assert (found.code, found.err.count("\n")) == (2, 1)


def test_targets_that_the_base_does_not_have_are_refused_with_those_it_has(tmp_path: Path, lorikeet: Command) -> None:
    config = write_config(tmp_path / "bare", SMALL)
    found = lorikeet("train", "plan", "--base", config, "--targets", "q_prj")
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert "q_proj" in found.err


def test_neither_job_nor_base_is_refused(lorikeet: Command) -> None:
    assert lorikeet("train", "plan").code == 2


@given(fields=st.dictionaries(st.sampled_from(sorted(SMALL)), st.none() | st.integers(-3, 3) | st.text(max_size=3)))
def test_whatever_a_config_says_it_is_read_or_refused(
    fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_config(tmp_path_factory.mktemp("any"), SMALL | fields)
    try:
        read = read_architecture(path).total_parameters
    except BaseError as error:
        read = 1 if "\n" not in error.message else 0
    assert read > 0


# --- what is said -----------------------------------------------------------------------------------------------------


def test_a_plan_says_all_that_a_decision_needs(tmp_path: Path, lorikeet: Command) -> None:
    config = write_config(tmp_path / "bare", LLAMA_31_8B)
    words = ("--examples", 20000, "--memory", "24GiB", "--price-per-hour", 2)
    found = lorikeet("train", "plan", "--base", config, *words, "--json").json
    assert found["recommendation"]["method"] == "lora"
    assert found["recommendation"]["reasons"]
    assert {rejected["method"] for rejected in found["recommendation"]["rejected"]} == {"full", "qlora"}
    assert found["disagreements"]
    assert {key["key"] for key in found["job"]} >= {"rank", "learning_rate", "dropout", "precision"}
    assert found["time"]["basis"] == "stated"
    assert found["time"]["fastest_seconds"] < found["time"]["seconds"] < found["time"]["slowest_seconds"]
    assert found["cost"]["least"] < found["cost"]["expected"] < found["cost"]["most"]


def test_a_card_too_small_for_lora_is_told_to_take_qlora(tmp_path: Path, lorikeet: Command) -> None:
    config = write_config(tmp_path / "bare", LLAMA_31_8B)
    found = lorikeet("train", "plan", "--base", config, "--memory", "12GiB", "--json").json
    assert found["fits"] is False
    assert found["recommendation"]["method"] == "qlora"
    assert found["would_fit"]


def test_a_step_in_smaller_batches_is_offered_where_it_fits(tmp_path: Path, lorikeet: Command) -> None:
    config = write_config(tmp_path / "bare", LLAMA_31_8B)
    found = lorikeet("train", "plan", "--base", config, "--batch-size", 32, "--memory", "40GiB", "--json").json
    assert found["fits"] is False
    assert "gradient_accumulation: 2 (the same steps)" in found["would_fit"][0]


def test_a_job_file_is_planned_and_flags_win_over_it(write_job: WriteJob, lorikeet: Command) -> None:
    path = write_job(rank=4)
    assert _key(lorikeet("train", "plan", path, "--json").json, "rank") == 4
    assert _key(lorikeet("train", "plan", path, "--rank", 8, "--json").json, "rank") == 8
    assert _key(lorikeet("train", "plan", path, "--set", "rank=2", "--json").json, "rank") == 2


def test_a_job_file_tells_how_many_examples_there_are(write_job: WriteJob, lorikeet: Command) -> None:
    found = lorikeet("train", "plan", write_job(held_out=0, checks={"duplicates": "warn"}), "--json")
    assert found.json["data"]["example_count"] == 4


def test_a_path_needs_no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lorikeet: Command) -> None:
    monkeypatch.setenv("LORIKEET_HOME", str(tmp_path / "nowhere"))
    assert lorikeet("train", "plan", "--base", write_config(tmp_path / "bare", SMALL), "--json").code == 0
    assert not (tmp_path / "nowhere").exists()


def test_runs_that_are_finished_tell_how_long_the_next_takes(home: Path, lorikeet: Command) -> None:
    with open_registry(home) as registry:
        fingerprint = registry.bases.find(_operator(), "tiny").fingerprint
    _write_run(home / "runs" / "one", base_fingerprint=fingerprint, tokens=10_000, training_seconds=100.0)
    _write_run(
        home / "runs" / "other-method", base_fingerprint=fingerprint, method="full", tokens=1, training_seconds=100.0
    )
    _write_run(home / "runs" / "other-base", base_fingerprint="sha256:0", tokens=1, training_seconds=100.0)
    found = lorikeet("train", "plan", "--base", "tiny", "--examples", 1000, "--json").json["time"]
    assert found["basis"] == "measured"
    assert found["tokens_per_second"] == pytest.approx(100)


def test_a_person_sees_tables(tmp_path: Path, lorikeet: Command) -> None:
    found = lorikeet("train", "plan", "--base", write_config(tmp_path / "bare", SMALL), "--examples", 100, "--articles")
    assert found.code == 0
    for word in ("trainable", "activations", "Recommended", "Every key of the job", "Where the articles disagree"):
        assert word in found.out


# --- time -------------------------------------------------------------------------------------------------------------


def test_all_weights_take_the_operations_that_trl_counts(tmp_path: Path) -> None:
    architecture = read_architecture(write_config(tmp_path, LLAMA_31_8B))
    batch = Batch(rows=1, length=2048, learned_share=1.0, is_padded=False, has_dropout=False)
    ours = flops_per_token(job(method="full"), architecture, batch, recomputes=False)
    assert ours == compute_flops_per_token(AutoConfig.for_model(**LLAMA_31_8B), 2048)


def test_an_adapter_takes_fewer_operations_than_all_weights_and_recomputing_takes_more(small: Architecture) -> None:
    batch = Batch(rows=1, length=64, learned_share=1.0, is_padded=False, has_dropout=False)
    full = flops_per_token(job(method="full"), small, batch, recomputes=False)
    lora = flops_per_token(job(rank=1), small, batch, recomputes=False)
    assert lora < full < flops_per_token(job(method="full"), small, batch, recomputes=True)


@given(examples=st.integers(1, 10_000), batch=st.integers(1, 64), accumulation=st.integers(1, 8))
def test_steps_cover_all_examples(examples: int, batch: int, accumulation: int) -> None:
    steps = step_count(job(epochs=1, batch_size=batch, gradient_accumulation=accumulation), examples)
    assert (steps - 1) * batch * accumulation < examples <= steps * batch * accumulation


def test_every_size_of_card_has_a_speed() -> None:
    assert [most for most, _ in CARDS] == sorted(most for most, _ in CARDS)
    assert all(speed.slowest < speed.fastest for _, speed in CARDS)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * 2**30), ("24G", 24 * 2**30), ("80GB", 80 * 10**9), ("1.5 tib", 3 * 2**39), ("1024", 1024)],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_memory(text) == size


@given(text=st.text(max_size=12))
def test_whatever_is_written_as_a_size_is_read_or_refused(text: str) -> None:
    try:
        size = parse_memory(text)
    except JobError:
        size = 1
    assert size >= 1


def _key(plan: dict[str, Any], name: str) -> object:
    return next(key["value"] for key in plan["job"] if key["key"] == name)


def _operator() -> Any:
    from adapters import Caller

    return Caller.operator()


def _write_run(folder: Path, **keys: object) -> None:
    folder.mkdir(parents=True)
    record = {
        "status": "finished",
        "digest": "sha256:1",
        "dataset_fingerprint": "sha256:2",
        "base": "tiny",
        "method": "lora",
        "precision": "float32",
        "steps": 10,
        "final_loss": 1.0,
        "seconds": 120.0,
        "finished_at": "2026-11-22T00:00:00Z",
        "versions": {},
    }
    (folder / "run.json").write_text(json.dumps(record | keys))
