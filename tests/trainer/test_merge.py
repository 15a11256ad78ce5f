"""Adapters merged by the command, and run beside PEFT's own on the base."""

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from adapters import Caller, Kind, Registry, folder_members
from tests.tiny_model import make_tiny_checkpoint
from tests.trainer.conftest import Command
from tests.trainer.peft_adapters import TOKENS, base_model, logits_of, make_peft_adapter
from trainer.artifacts import merge as merging
from trainer.artifacts import shards
from trainer.base import prepare_base
from trainer.progress import Narrator

OPERATOR = Caller.operator()
Make = Callable[..., Path]


@pytest.fixture
def make(tiny: Path, tmp_path: Path) -> Make:
    def made(name: str = "adapter", **keys: Any) -> Path:
        return make_peft_adapter(tiny, tmp_path / name, **keys)

    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "merged"


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"use_rslora": True, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 3}},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
    ],
)
def test_the_merged_model_answers_as_the_adapter_does(
    lorikeet: Command, make: Make, tiny: Path, out: Path, keys: dict[str, Any]
) -> None:
    adapter = make(**keys)
    shown = lorikeet("train", "merge", adapter, "--out", out, "--json")
    assert (shown.code, shown.json["precision"], shown.json["layers"]) == (0, "float32", 6), shown.err
    assert shown.json["agreement"]["relative"] < 1e-4
    assert shown.json["agreement"]["same_choice"] == 1
    assert lost_by_merging(tiny, adapter, out) < 1e-4


def test_adalora_is_merged_too(lorikeet: Command, make: Make, tiny: Path, out: Path) -> None:
    adapter = make(adalora=True, init_r=6, target_r=2, total_step=100, tinit=50)
    assert lorikeet("train", "merge", adapter, "--out", out).code == 0
    assert lost_by_merging(tiny, adapter, out) < 1e-4


def test_all_but_the_changed_weights_keep_their_bytes(lorikeet: Command, make: Make, tiny: Path, out: Path) -> None:
    assert lorikeet("train", "merge", make(), "--out", out).code == 0
    assert {file.name for file in out.iterdir()} == {file.name for file in tiny.iterdir()} | {"README.md"}
    for file in tiny.iterdir():
        if file.suffix != ".safetensors":
            assert (out / file.name).read_bytes() == file.read_bytes(), file.name
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny, out))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert list(before) == list(after)
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj", "down_proj"}
    assert len(changed) == 6


def test_the_gate_takes_it_and_knows_its_parent(lorikeet: Command, make: Make, registry: Registry, out: Path) -> None:
    published = registry.versions.publish(OPERATOR, "acme", "support", folder_members(make(r=4)), base="tiny")
    shown = lorikeet("train", "merge", "acme/support@1", "--out", out, "--publish", "acme/whole", "--json")
    assert (shown.code, shown.json["version"]) == (0, "acme/whole@1"), shown.err
    merged = registry.versions.get(OPERATOR, "acme", "whole", 1)
    assert (merged.manifest.kind, merged.parents) == (Kind.MERGED, ("acme/support@1",))
    assert merged.manifest.base_fingerprint == published.version.manifest.base_fingerprint
    assert merged.origin["method"] == "merge"
    assert merged.origin["merge"]["onto"] == "bf16"
    assert merged.origin["merge"]["agreement"]["relative"] < 1e-4
    assert merged.warnings == ()


def test_sums_are_rounded_once_to_the_stated_precision(lorikeet: Command, make: Make, tiny: Path, out: Path) -> None:
    adapter = make()
    shown = lorikeet("train", "merge", adapter, "--out", out, "--precision", "bfloat16", "--json")
    assert (shown.code, shown.json["precision"]) == (0, "bfloat16")
    exact = PeftModel.from_pretrained(base_model(tiny), adapter).merge_and_unload().state_dict()
    for name, tensor in load_file(out / "model.safetensors").items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor, exact[name].to(torch.bfloat16), rtol=2**-7, atol=1e-6)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert 0 < shown.json["rounding"]["lost"] < 1
    assert 0 < shown.json["agreement"]["relative"] < 0.25


def test_an_adapter_that_rounding_swallows_is_told(lorikeet: Command, make: Make, out: Path) -> None:
    adapter = make()
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor * (1e-3 if "lora_B" in name else 1) for name, tensor in tensors.items()}, path)
    shown = lorikeet("train", "merge", adapter, "--out", out, "--precision", "bfloat16", "--json")
    assert (shown.code, shown.json["swallowed"]) == (0, True)
    assert shown.json["rounding"]["changed_share"] < 0.15
    assert "swallowed" in (out / "README.md").read_text()
    kept = lorikeet("train", "merge", adapter, "--out", out.with_name("exact"), "--json")
    assert (kept.json["swallowed"], kept.json["rounding"]["changed_share"] > 0.9) == (False, True)


def test_onto_the_weights_that_qlora_trained_on(lorikeet: Command, make: Make, tiny: Path, out: Path) -> None:
    adapter = make()
    shown = lorikeet("train", "merge", adapter, "--onto", "dequantised", "--out", out, "--json")
    assert (shown.code, shown.json["onto"]) == (0, "dequantised"), shown.err
    assert shown.json["agreement"]["relative"] < 1e-4
    quantised = in_four_bits(tiny)
    merged = load_file(out / "model.safetensors")
    untouched = "model.layers.0.self_attn.k_proj"
    torch.testing.assert_close(merged[f"{untouched}.weight"], dequantised(quantised, untouched), rtol=0, atol=1e-6)
    exact = PeftModel.from_pretrained(base_model(tiny), adapter)
    changed = "model.layers.1.mlp.down_proj"
    delta = exact.base_model.model.get_submodule(changed).get_delta_weight("default").detach()
    wanted = dequantised(quantised, changed) + delta
    torch.testing.assert_close(merged[f"{changed}.weight"], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("precision", "double"), [("bfloat16", True), ("float32", False)])
def test_a_version_knows_what_its_qlora_run_trained_on(
    lorikeet: Command, make: Make, registry: Registry, tiny: Path, out: Path, precision: str, *, double: bool
) -> None:
    origin = {"method": "qlora", "quantization": "nf4", "double_quantization": double, "base_precision": precision}
    registry.versions.publish(OPERATOR, "acme", "support", folder_members(make()), base="tiny", origin=origin)
    words = ("train", "merge", "acme/support@1", "--onto", "dequantised", "--out", out, "--no-measure")
    assert lorikeet(*words).code == 0
    untouched = "model.layers.0.self_attn.k_proj"
    trained_on = dequantised(in_four_bits(tiny, dtype=getattr(torch, precision), double=double), untouched)
    merged = load_file(out / "model.safetensors")[f"{untouched}.weight"]
    torch.testing.assert_close(merged, trained_on.float(), rtol=0, atol=0)
    shown = lorikeet(*words[:-2], out.with_name("again"), "--double-quantisation")
    assert (shown.code, "says itself" in shown.err) == (2, True), shown.err


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ({"method": "lora"}, "was trained by lora"),
        ({"method": "qlora", "quantization": "int8"}, "was trained on int8"),
    ],
)
def test_what_was_not_trained_on_nf4_is_not_merged_onto_it(
    lorikeet: Command, make: Make, registry: Registry, out: Path, origin: dict[str, str], said: str
) -> None:
    registry.versions.publish(OPERATOR, "acme", "support", folder_members(make()), base="tiny", origin=origin)
    for verb in (("merge",), ("export", "--to", "folder")):
        shown = lorikeet("train", *verb, "acme/support@1", "--onto", "dequantised", "--out", out)
        assert (shown.code, said in shown.err, out.exists()) == (2, True, False), shown.err


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"])
def test_a_number_that_the_precision_has_no_room_for_is_refused(
    lorikeet: Command, make: Make, tiny: Path, tmp_path: Path, out: Path, name: str
) -> None:
    large = shutil.copytree(tiny, tmp_path / "large")
    tensors = load_file(large / "model.safetensors")
    tensors[name][3, 3] = 1e5
    save_file(tensors, large / "model.safetensors", metadata={"format": "pt"})
    adapter = make(base_name="no/such-base")
    words = ("train", "merge", adapter, "--base", large, "--out", out, "--no-measure", "--precision")
    shown = lorikeet(*words, "float16")
    assert (shown.code, out.exists()) == (2, False)
    assert f"{name}: holds 1e+05, and F16 goes up to 6.55e+04" in shown.err
    assert lorikeet(*words, "bfloat16").code == 0


def test_whether_a_head_is_tied_is_asked_of_the_architecture_too(tmp_path: Path) -> None:
    for stated, is_tied in (
        ({"model_type": "llama"}, False),
        ({"model_type": "llama", "tie_word_embeddings": True}, True),
        ({"model_type": "gemma"}, True),
        ({"model_type": "gemma", "tie_word_embeddings": False}, False),
    ):
        (tmp_path / "config.json").write_text(json.dumps(stated))
        assert merging._is_tied(tmp_path) is is_tied


def test_a_tied_head_stays_the_embedding(lorikeet: Command, tied: Path, tmp_path: Path, out: Path) -> None:
    adapter = make_peft_adapter(tied, tmp_path / "adapter", base_name="tied")
    shown = lorikeet("train", "merge", adapter, "--out", out, "--publish", "acme/whole", "--json")
    assert shown.code == 0, shown.err
    assert shown.json["version"] == "acme/whole@1"
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    assert lost_by_merging(tied, adapter, out) < 1e-4


def test_shards_stay_shards(lorikeet: Command, tiny: Path, tmp_path: Path, make: Make, out: Path) -> None:
    sharded = tmp_path / "tiny-in-shards"
    shutil.copytree(tiny, sharded)
    (sharded / "model.safetensors").unlink()
    base_model(tiny).save_pretrained(sharded, max_shard_size="200KB")
    (sharded / "consolidated.safetensors").write_bytes(b"another layout of the same, which the index does not name")
    adapter = make(base_name="no/such-base")
    shown = lorikeet("train", "merge", adapter, "--base", sharded, "--out", out, "--precision", "bfloat16", "--json")
    assert shown.code == 0, shown.err
    shards = sorted(file.name for file in out.glob("*.safetensors"))
    assert len(shards) > 1
    assert shards == sorted(file.name for file in sharded.glob("model-*.safetensors"))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == shown.json["size_bytes"]
    assert lost_by_merging(tiny, adapter, out) < 0.25


def test_a_models_weights_are_never_all_in_memory(
    lorikeet: Command, make: Make, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size_bytes: list[int] = []
    held: list[int] = []
    write = shards.write_shard

    def watched(path: Path, slots: Any, read: Any) -> None:
        def noted(slot: Any) -> torch.Tensor:
            alive = [one for one in gc.get_objects() if type(one) is torch.Tensor]
            held.append(sum(one.nbytes for one in alive))
            size_bytes.append(slot.size_bytes)
            return read(slot)  # type: ignore[no-any-return]

        write(path, slots, noted)

    monkeypatch.setattr("trainer.artifacts.merge.write_shard", watched)
    shown = lorikeet("train", "merge", make(), "--out", out, "--no-measure", "--json")
    assert (shown.code, shown.json["agreement"]) == (0, None)
    assert sum(size_bytes) == shown.json["size_bytes"]
    assert max(held) - min(held) <= 4 * max(size_bytes)
    with safe_open(out / "model.safetensors", framework="pt") as opened:
        assert len(size_bytes) == len(list(opened.keys()))


def test_what_cannot_be_merged_leaves_nothing_behind(
    lorikeet: Command, make: Make, tiny: Path, out: Path, tmp_path: Path
) -> None:
    adapter = make()
    for words, said in (
        ((tmp_path / "nowhere",), "invalid_adapter_name"),
        (("acme/none@1",), "adapter_not_found"),
        ((tiny,), "whole model"),
        ((adapter, "--base", "unknown"), "base_not_found"),
        ((make("pissa", init_lora_weights="pissa"), "--onto", "dequantised"), "--onto bf16"),
    ):
        shown = lorikeet("train", "merge", *words, "--out", out)
        assert (shown.code, said in shown.err, "Traceback" in shown.err) == (2, True, False), shown.err
        assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("")
    assert lorikeet("train", "merge", adapter, "--out", out).code == 2
    assert [file.name for file in out.iterdir()] == ["mine"]
    assert not list(tmp_path.glob(".staging-*"))


@pytest.fixture
def tied(registry: Registry, tmp_path: Path, home: Path) -> Path:
    """A base whose head is its embedding."""
    folder = make_tiny_checkpoint(tmp_path / "tied", seed=2)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    prepare_base(str(folder), None, registry=registry, home=home, narrator=Narrator())
    return folder


def lost_by_merging(base: Path, adapter: Path, merged: Path) -> float:
    plain, wanted = logits_of(base, None), logits_of(base, adapter)
    with torch.no_grad():
        found = base_model(merged).eval()(input_ids=TOKENS).logits
    return float((found - wanted).norm() / (wanted - plain).norm())


def in_four_bits(base: Path, *, dtype: torch.dtype = torch.float32, double: bool = True) -> Any:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype, quantization_config=config)


def dequantised(model: Any, module: str) -> torch.Tensor:
    weight = model.get_submodule(module).weight
    restored: torch.Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    return restored
