"""Each method and variant, trained by the real recipe on the tiny model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainingArguments

from tests.trainer.training import a_job, a_task, examples
from trainer.job import TrainJob
from trainer.recipes import sft
from trainer.recipes.base_model import autocasts, load_base, precision_of
from trainer.recipes.optimizers import optim_name, optimizer_for
from trainer.recipes.peft_methods import peft_config
from trainer.recipes.saving import save_adapter
from trainer.recipes.trainable import require_frozen_base

METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full, mixed precision": {"method": "full", "precision": "mixed"},
    "full, 8-bit optimizer": {"method": "full", "optimizer": "adamw_8bit"},
    "lora": {},
    "lora, bfloat16 base": {"precision": "bfloat16"},
    "rslora": {"variant": "rslora"},
    "dora": {"variant": "dora"},
    "lora+": {"lora_plus_ratio": 4.0, "learning_rate": 3e-3},
    "adalora": {"variant": "adalora", "max_steps": 20},
    "adalora, bfloat16 base": {"variant": "adalora", "precision": "bfloat16", "max_steps": 20},
    "pissa": {"variant": "pissa"},
    "qlora": {"method": "qlora"},
    "qlora, single quantisation, paged 8-bit optimizer": {
        "method": "qlora",
        "double_quantization": False,
        "optimizer": "paged_adamw_8bit",
    },
    "qlora, bfloat16": {"method": "qlora", "precision": "bfloat16"},
    "qlora, dora": {"method": "qlora", "variant": "dora"},
    "qlora, adalora": {"method": "qlora", "variant": "adalora", "max_steps": 20},
    "int8": {"method": "qlora", "quantization": "int8"},
    "int8, dora": {"method": "qlora", "quantization": "int8", "variant": "dora"},
}

Weights = dict[str, torch.Tensor]


@pytest.fixture
def beginning(monkeypatch: pytest.MonkeyPatch) -> Iterator[Weights]:
    """All weights of the model that is trained, as they are before the first step."""
    weights: Weights = {}

    def look(model: Any, job: TrainJob) -> int:
        weights.update({name: each.detach().clone() for name, each in model.named_parameters()})
        return require_frozen_base(model, job)

    monkeypatch.setattr(sft, "require_frozen_base", look)
    yield weights
    assert weights


@pytest.mark.parametrize("keys", METHODS.values(), ids=METHODS)
def test_the_loss_falls_and_all_that_is_trained_moves_and_nothing_else(
    tiny: Path, tmp_path: Path, beginning: Weights, keys: dict[str, Any]
) -> None:
    task, heard = a_task(a_job(**keys), tiny, tmp_path)
    trained = sft.train(task)
    assert heard.losses[-1] < heard.losses[0] - (0.05 if keys.get("variant") == "adalora" else 1)
    after = dict(trained.model.named_parameters())
    moved = {name for name, each in after.items() if not torch.equal(each, beginning[name])}
    still = {name for name, each in after.items() if each.requires_grad} - moved
    assert all(after[name].requires_grad for name in moved)
    assert all("lora_E" in name and not bool(after[name].any()) for name in still)  # AdaLoRA left it no rank
    assert {each.dtype for each in after.values() if each.requires_grad} == {torch.float32}


def test_pure_bfloat16_loses_the_steps_of_what_stands_at_one(tiny: Path, tmp_path: Path, beginning: Weights) -> None:
    task, _ = a_task(a_job(method="full", precision="bfloat16"), tiny, tmp_path)
    trained = sft.train(task)
    still = {name for name, each in trained.model.named_parameters() if torch.equal(each, beginning[name])}
    assert still
    assert all("norm" in name for name in still)


def test_pissa_begins_where_the_base_stands(tiny: Path, tmp_path: Path) -> None:
    losses = {}
    for variant in ("lora", "pissa"):
        task, heard = a_task(a_job(variant=variant, dropout=0.0, max_steps=1), tiny, tmp_path / variant)
        sft.train(task)
        losses[variant] = heard.losses[0]
    assert losses["pissa"] == pytest.approx(losses["lora"], rel=1e-5)


def test_adalora_takes_ranks_away_until_the_average_is_the_jobs(tiny: Path, tmp_path: Path) -> None:
    task, _ = a_task(a_job(variant="adalora", max_steps=12), tiny, tmp_path)
    model = sft.train(task).model
    entries = [each for name, each in model.named_parameters() if "lora_E" in name]
    assert {len(each) for each in entries} == {6}
    assert sum(int((each != 0).sum()) for each in entries) == 4 * len(entries)


def test_adalora_that_ends_early_gives_back_the_best_with_the_ranks_of_then(tiny: Path, tmp_path: Path) -> None:
    job = a_job(variant="adalora", max_steps=20, eval_steps=2, early_stopping=2, learning_rate=0.1, dropout=0.0)
    task, heard = a_task(job, tiny, tmp_path, held_out=examples(3)[::-1])
    trained = sft.train(task)
    assert trained.kept_step is not None
    assert trained.kept_step < trained.last.step
    kept = load_file(tmp_path / "checkpoints" / f"checkpoint-{trained.kept_step}" / "adapter_model.safetensors")
    entries = {name: each for name, each in trained.model.named_parameters() if "lora_E" in name}
    assert entries
    for name, each in entries.items():
        assert torch.equal(each, kept[name.replace(".default", "")])
    (tmp_path / "adapter").mkdir()
    save_adapter(trained.model, tmp_path / "adapter", base_name="tiny")
    pattern = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["rank_pattern"]
    assert sum(sum(stays) for stays in pattern.values()) == sum(int((each != 0).sum()) for each in entries.values())
    assert trained.held_out_loss == min(each.held_out_loss for each in heard.evaluations)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_an_interrupted_adalora_goes_on_as_if_it_had_not_been(tiny: Path, tmp_path: Path, optimizer: str) -> None:
    job = a_job(variant="adalora", max_steps=8, checkpoint_steps=5, optimizer=optimizer)
    task, whole = a_task(job, tiny, tmp_path)
    sft.train(task)
    again, rest = a_task(job, tiny, tmp_path, resume_from=tmp_path / "checkpoints" / "checkpoint-5")
    sft.train(again)
    assert rest.losses == whole.losses[5:]


def test_lora_plus_steps_b_faster_than_a_by_the_jobs_ratio(tiny: Path, tmp_path: Path) -> None:
    job = a_job(lora_plus_ratio=8.0)
    model = get_peft_model(load_base(job, tiny)[0], peft_config(job, example_count=8))
    optimizer = optimizer_for(job, model, TrainingArguments(tmp_path, learning_rate=1e-3, use_cpu=True))
    assert optimizer is not None
    rates = {id(each): group["lr"] for group in optimizer.param_groups for each in group["params"]}
    for name, each in model.named_parameters():
        if each.requires_grad:
            assert rates[id(each)] == pytest.approx(8e-3 if "lora_B" in name else 1e-3)


def test_only_lora_plus_needs_an_optimizer_of_its_own(tiny: Path, tmp_path: Path) -> None:
    assert optimizer_for(a_job(), load_base(a_job(), tiny)[0], TrainingArguments(tmp_path, use_cpu=True)) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is memory to page to")
def test_nothing_is_paged_on_the_cpu() -> None:
    assert [optim_name(a_job(optimizer=name)) for name in ("adamw", "paged_adamw_32bit", "paged_adamw_8bit")] == [
        "adamw_torch_fused",
        "adamw_torch_fused",
        "adamw_8bit",
    ]


@pytest.mark.parametrize(
    ("is_fast", "method", "precision"),
    [
        (True, "full", "mixed"),
        (True, "lora", "bfloat16"),
        (True, "qlora", "bfloat16"),
        (False, "full", "float32"),
        (False, "lora", "float32"),
        (False, "qlora", "float32"),
    ],
)
def test_auto_is_what_the_hardware_is_quick_in_and_the_method_can_bear(
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_fast: bool,
    method: str,
    precision: str,
) -> None:
    monkeypatch.setattr("trainer.recipes.base_model.has_fast_bfloat16", lambda: is_fast)
    assert precision_of(a_job(method=method)) == precision
    assert precision_of(a_job(method=method, precision="float32")) == "float32"


def test_a_whole_training_in_bfloat16_alone_has_nothing_to_cast() -> None:
    assert not autocasts(a_job(method="full"), "bfloat16")
    assert autocasts(a_job(method="full"), "mixed")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nf4_computes_in_the_precision_of_the_rest(tiny: Path, precision: str) -> None:
    model, _ = load_base(a_job(method="qlora", precision=precision), tiny)
    dtype = getattr(torch, precision)
    assert model.model.layers[0].self_attn.q_proj.compute_dtype == dtype
    assert model.lm_head.weight.dtype == dtype


@pytest.mark.gpu
@pytest.mark.parametrize("keys", METHODS.values(), ids=METHODS)
def test_the_same_job_learns_on_a_gpu(tiny: Path, tmp_path: Path, keys: dict[str, Any]) -> None:
    task, heard = a_task(a_job(**keys), tiny, tmp_path)
    trained = sft.train(task)
    assert heard.losses[-1] < heard.losses[0]
    assert next(trained.model.parameters()).is_cuda


def test_the_base_is_read_as_it_is(tiny: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    loaded, precision = load_base(a_job(precision="float32"), tiny)
    assert precision == "float32"
    tokens = torch.tensor([examples()[0].input_ids])
    with torch.no_grad():
        assert torch.equal(plain(tokens).logits, loaded(tokens).logits)
