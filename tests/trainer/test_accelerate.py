"""Trainings that are spread over processes: the configs that ship, what is refused, and two processes over gloo."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.trainer.training import a_job, a_task, examples
from trainer.errors import Interrupted, JobError, TrainingError
from trainer.recipes import launch
from trainer.recipes.carrying_out import carry_out
from trainer.recipes.spread import Spread, Way, read_spread, require_possible, share_out
from trainer.recipes.task_files import (
    Order,
    Outcome,
    as_line,
    from_line,
    read_order,
    write_order,
    write_outcome,
)
from trainer.step import Checkpoint, Evaluation, Step

CONFIGS = Path("deploy/accelerate")
NAMES = ("cpu", "ddp", "deepspeed-zero2", "fsdp")


def a_spread(name: str, processes: int | None = None) -> Spread:
    return read_spread(CONFIGS / f"{name}.yaml", processes)


def test_these_configs_ship() -> None:
    assert tuple(sorted(path.stem for path in CONFIGS.glob("*.yaml"))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_config_that_ships_is_one_that_accelerate_reads_with_no_key_that_it_would_ignore(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    read = load_config_from_file(str(path))  # refuses keys that it does not know
    assert read.distributed_type.value == a_spread(name).config.distributed_type.value
    assert (read.num_machines, read.num_processes, read.mixed_precision) == (1, 2, "no")
    known = {action.dest for action in launch_command_parser()._actions}
    stated = yaml.safe_load(path.read_text())
    sections = stated.get("fsdp_config", {}) | stated.get("deepspeed_config", {})
    assert set(sections) <= known
    assert bool(sections) == (name not in {"cpu", "ddp"})


@pytest.mark.parametrize(
    ("name", "keys", "complaint"),
    [
        ("fsdp", {"method": "qlora", "quantization": "int8"}, "8-bit"),
        ("deepspeed-zero2", {"optimizer": "paged_adamw_32bit"}, "take optimizer: adamw"),
        ("fsdp", {"optimizer": "adamw_8bit"}, "take optimizer: adamw"),
        ("fsdp", {"lora_plus_ratio": 4.0}, "lora_plus_ratio"),
        ("deepspeed-zero2", {"variant": "adalora"}, "adalora"),
        ("fsdp", {"variant": "pissa"}, "pissa"),
        ("fsdp", {"variant": "dora"}, "dora"),
        ("fsdp", {"method": "full", "objective": "dpo"}, "reference"),
        ("ddp", {"batch_size": 3}, "multiple of 2"),
    ],
)
def test_what_can_not_be_trained_so_is_refused_with_what_can(name: str, keys: dict[str, Any], complaint: str) -> None:
    with pytest.raises(JobError, match=complaint):
        require_possible(a_job(**keys), a_spread(name))


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("ddp", {"method": "qlora", "quantization": "int8", "optimizer": "paged_adamw_8bit"}),
        ("ddp", {"variant": "adalora", "lora_plus_ratio": 4.0}),
        ("fsdp", {"method": "full"}),
        ("fsdp", {"method": "qlora"}),
        ("deepspeed-zero2", {"method": "qlora"}),
        ("deepspeed-zero2", {"method": "full"}),
        ("cpu", {"variant": "dora"}),
    ],
)
def test_what_can_be_is_not(name: str, keys: dict[str, Any]) -> None:
    require_possible(a_job(**keys), a_spread(name))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("distributed_type: [", "no accelerate config"),
        ("distributed_type: MEGATRON_LM", "no accelerate config"),
        ("{distributed_type: MULTI_GPU, num_machines: 2}", "one machine"),
        ("{distributed_type: MULTI_GPU, mixed_precision: bf16}", "write 'no'"),
        ("{distributed_type: FSDP, fsdp_config: {fsdp_version: 1}}", "must be 2"),
        ("{distributed_type: DEEPSPEED, deepspeed_config: {zero_stage: 3}}", "zero_stage is 3, .*fsdp.yaml"),
        ("{distributed_type: DEEPSPEED, deepspeed_config: {deepspeed_config_file: x}}", "zero_stage is not said"),
    ],
)
def test_a_config_that_can_not_be_followed_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(JobError, match=complaint):
        read_spread(path)
    with pytest.raises(JobError, match="can't be read"):
        read_spread(tmp_path / "other.yaml")


def test_the_number_of_processes_may_be_said_beside_the_config() -> None:
    assert (a_spread("ddp").processes, a_spread("ddp", 8).processes) == (2, 8)


@given(batch=st.integers(1, 64), accumulation=st.integers(1, 64), processes=st.integers(1, 16))
def test_a_step_is_made_of_the_same_examples_in_any_number_of_processes(
    batch: int, accumulation: int, processes: int
) -> None:
    job = a_job(batch_size=batch, gradient_accumulation=accumulation)
    try:
        shared = share_out(job, processes)
    except JobError:
        assert batch % processes
        assert accumulation % processes
        return
    assert shared.batch_size * shared.gradient_accumulation * processes == batch * accumulation


def test_an_order_is_read_as_it_was_written(tiny: Path, tmp_path: Path) -> None:
    for keys in ({"variant": "dora"}, {"objective": "dpo", "beta": 0.2}):
        task, _ = a_task(a_job(**keys), tiny, tmp_path, held_out=[], listeners=())
        write_order(Order(task, tmp_path / "out", "tiny", 1), tmp_path)
        assert read_order(tmp_path, listeners=()) == Order(task, tmp_path / "out", "tiny", 1)


def test_what_is_told_is_read_as_it_was_told() -> None:
    step = Step(1, 2, 0.5, 1e-3, 10, 0.1, 100.0, reward_margin=0.25)
    for told in (step, Evaluation(1, 0.5, 0.1, is_best=True), Checkpoint(2, "checkpoint-2", 0.1)):
        assert from_line(as_line(told)) == told


def test_an_outcome_is_handed_back_and_an_error_raised_as_the_process_raised_it(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="its own words"):
        launch._outcome(tmp_path)
    outcome = Outcome("float32", Step(1, 2, 0.5, 1e-3, 10, 0.1, 100.0), 0.7, 1)
    write_outcome(outcome, tmp_path)
    assert launch._outcome(tmp_path) == outcome
    write_outcome({"error": "JobError", "code": "invalid_job", "message": "no"}, tmp_path)
    with pytest.raises(JobError, match="no"):
        launch._outcome(tmp_path)
    stopped = {"error": "Interrupted", "code": "interrupted", "message": "", "signal_number": 15, "step": 3}
    write_outcome(stopped, tmp_path)
    with pytest.raises(Interrupted) as caught:
        launch._outcome(tmp_path)
    assert (caught.value.exit_code, caught.value.step) == (143, 3)


def test_the_gpus_processes_are_started_by_accelerate_and_the_cpus_by_torchrun() -> None:
    gpu, cpu = (launch._command(a_spread(name, 3), Path("x")) for name in ("fsdp", "cpu"))
    assert gpu[2:4] == ["accelerate.commands.launch", "--config_file"]
    assert gpu[4:9] == [str((CONFIGS / "fsdp.yaml").resolve()), "--num_processes", "3", "--main_process_port", "0"]
    assert cpu[2:] == [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "3",
        "-m",
        "trainer.recipes.worker",
        "x",
    ]
    assert a_spread("cpu").config.distributed_type is Way.CPU


def test_two_processes_learn_the_same_as_one(tiny: Path, tmp_path: Path) -> None:
    job = a_job(max_steps=6, eval_steps=3, dropout=0.0)
    curves, held_out, weights = [], [], []
    for name, spread in (("one", None), ("two", a_spread("cpu"))):
        folder = tmp_path / name
        out = folder / "adapter"
        out.mkdir(parents=True)
        task, heard = a_task(job, tiny, folder, held_out=examples(3))
        outcome = carry_out(task, out=out, base_name="tiny", spread=spread, workers=folder / "workers")
        assert outcome.last == heard.steps[-1]
        curves.append([(step.loss, step.tokens) for step in heard.steps])
        held_out.append([each.held_out_loss for each in heard.evaluations])
        weights.append(load_file(out / "adapter_model.safetensors"))
        assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    for one, two in zip(*curves, strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    assert held_out[1] == pytest.approx(held_out[0], rel=1e-4)
    for tensor, of_one in weights[0].items():
        assert torch.allclose(weights[1][tensor].float(), of_one.float(), atol=1e-3)
