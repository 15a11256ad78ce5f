"""What a training leaves on the disk: adapters that the converter takes, models that the registry takes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from adapters import Caller, Kind, Registry, folder_members
from tests.trainer.conftest import Command
from tests.trainer.training import a_job, a_task
from trainer.errors import RunError
from trainer.recipes import sft
from trainer.recipes.alone import train_and_save
from trainer.recipes.base_model import load_base
from trainer.recipes.peft_methods import peft_config
from trainer.recipes.saving import save_adapter, save_model

TOKENS = torch.arange(5, 400, 9)[None]


def an_adapter(tiny: Path, **keys: Any) -> PeftModel:
    job = a_job(**keys)
    return get_peft_model(load_base(job, tiny)[0], peft_config(job, example_count=8))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TOKENS).logits
    return found


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT's, of layers that AdaLoRA left no rank
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")  # PEFT's, of its own masks
@pytest.mark.parametrize(
    ("keys", "bound"),
    [({"variant": "pissa"}, 1e-3), ({"variant": "adalora", "max_steps": 12}, 1e-3), ({"variant": "dora"}, 0.05)],
    ids=["pissa", "adalora", "dora"],
)
def test_what_was_trained_is_converted_to_an_adapter_that_answers_the_same(
    lorikeet: Command, registry: Registry, tiny: Path, tmp_path: Path, keys: dict[str, Any], bound: float
) -> None:
    task, _ = a_task(a_job(precision="float32", **keys), tiny, tmp_path)
    model = sft.train(task).model
    trained, out = tmp_path / "trained", tmp_path / "adapter"
    trained.mkdir()
    save_adapter(model, trained, base_name="tiny")
    assert lorikeet("train", "convert", trained, "--out", out, "--rank", 64, "--base", tiny).code == 0
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), out)
    base = logits(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32))
    effect = logits(model) - base
    assert float((logits(plain) - logits(model)).norm() / effect.norm()) < bound
    (known,) = registry.bases.list(Caller.operator())
    published = registry.versions.publish(Caller.operator(), "acme", "x", folder_members(out), base=known.fingerprint)
    assert published.version.manifest.rank == 64


def test_an_adapter_that_servers_load_is_saved_in_bfloat16_and_one_to_convert_in_float32(
    tiny: Path, tmp_path: Path
) -> None:
    for variant, dtype in (("lora", torch.bfloat16), ("rslora", torch.bfloat16), ("dora", torch.float32)):
        task, _ = a_task(a_job(variant=variant, max_steps=2), tiny, tmp_path / variant)
        (tmp_path / variant).mkdir()
        train_and_save(task, out=tmp_path / variant, base_name="tiny")
        tensors = load_file(tmp_path / variant / "adapter_model.safetensors")
        assert {each.dtype for each in tensors.values()} == {dtype}
        config = json.loads((tmp_path / variant / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["use_dora"]) == ("tiny", variant == "dora")


@pytest.mark.parametrize("variant", ["lora", "dora", "adalora", "pissa"])
def test_an_adapter_that_learned_nothing_is_not_saved(tiny: Path, tmp_path: Path, variant: str) -> None:
    with pytest.raises(RunError, match="as it was before"):
        save_adapter(an_adapter(tiny, variant=variant), tmp_path, base_name="tiny")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_not_saved(tiny: Path, tmp_path: Path, value: float) -> None:
    model = an_adapter(tiny)
    with torch.no_grad():
        next(each for name, each in model.named_parameters() if "lora_B" in name)[0, 0] = value
    with pytest.raises(RunError, match=r"lora_B.*not finite"):
        save_adapter(model, tmp_path, base_name="tiny")
    assert not list(tmp_path.iterdir())


def test_a_whole_model_is_the_base_but_for_its_weights(registry: Registry, tiny: Path, tmp_path: Path) -> None:
    task, _ = a_task(a_job(method="full", max_steps=3), tiny, tmp_path)
    out = tmp_path / "model"
    out.mkdir()
    outcome = train_and_save(task, out=out, base_name="tiny")
    assert outcome.last.step == 3
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (tiny / name).read_bytes()
    config, of_base = (json.loads((folder / "config.json").read_text()) for folder in (out, tiny))
    assert config == of_base | {"dtype": "bfloat16"}
    assert {each.dtype for each in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    (base,) = registry.bases.list(Caller.operator())
    published = registry.versions.publish(
        Caller.operator(), "acme", "model", folder_members(out), base=base.fingerprint, kind=Kind.FULL
    )
    assert published.version.manifest.base_fingerprint == base.fingerprint
    assert published.version.manifest.model_fingerprint not in {None, base.fingerprint}


def test_saving_a_whole_model_leaves_the_one_in_memory_alone_and_a_tied_head_tied(tiny: Path, tmp_path: Path) -> None:
    config = LlamaForCausalLM.from_pretrained(tiny).config
    config.tie_word_embeddings = True
    model = LlamaForCausalLM(config)
    base = tmp_path / "base"
    model.save_pretrained(base)
    out = tmp_path / "out"
    out.mkdir()
    save_model(model, out, base_folder=base)
    assert model.dtype == torch.float32
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    saved = LlamaForCausalLM.from_pretrained(out)
    assert saved.lm_head.weight is saved.model.embed_tokens.weight
    assert torch.equal(saved.lm_head.weight, model.lm_head.weight.to(torch.bfloat16))


def test_a_whole_model_that_is_not_finite_is_not_saved(tiny: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(RunError, match=r"model\.norm\.weight is not finite"):
        save_model(model, tmp_path, base_folder=tiny)
    assert not list(tmp_path.iterdir())


def test_what_pissa_changed_survives_the_precision_of_servers(lorikeet: Command, tiny: Path, tmp_path: Path) -> None:
    task, _ = a_task(a_job(variant="pissa", learning_rate=1e-3, max_steps=4), tiny, tmp_path)
    trained, out = tmp_path / "trained", tmp_path / "adapter"
    trained.mkdir()
    train_and_save(task, out=trained, base_name="tiny")
    assert lorikeet("train", "convert", trained, "--out", out, "--base", tiny).code == 0
    tensors = load_file(out / "adapter_model.safetensors")
    for name, a in tensors.items():
        if "lora_A" in name:
            b = tensors[name.replace("lora_A", "lora_B")]
            served = b.bfloat16().float() @ a.bfloat16().float()
            assert float((served - b @ a).norm() / (b @ a).norm()) < 0.01


@pytest.fixture
def alone_in_a_group() -> Iterator[None]:
    """This process as the only one of a run that is spread over processes."""
    store = torch._C._distributed_c10d.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_fsdp_shares_out_is_saved_whole(tiny: Path, tmp_path: Path, method: str) -> None:
    job = a_job(method=method, max_steps=2)
    task, _ = a_task(job, tiny, tmp_path)
    model = sft.train(task).model
    folders = [tmp_path / name for name in ("whole", "shared out", "another process")]
    for folder in folders:
        folder.mkdir()
        if folder.name == "shared out":
            fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
            assert all(isinstance(each, DTensor) for each in model.parameters())
        writes = folder.name != "another process"
        if method == "lora":
            save_adapter(model, folder, base_name="tiny", writes=writes)
        else:
            save_model(model, folder, base_folder=tiny, writes=writes)
    whole, shared, other = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
    assert whole == shared
    assert not other
