"""Adapters combined by the command: what it makes of the weights, beside what PEFT does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils import merge_utils

from adapters import Caller, Registry, folder_members
from tests.tiny_model import make_tiny_checkpoint
from tests.trainer.conftest import Command
from tests.trainer.peft_adapters import base_model, make_peft_adapter, tensors_of
from trainer.base import prepare_base
from trainer.progress import Narrator

OPERATOR = Caller.operator()
Make = Callable[..., Path]
Deltas = dict[str, torch.Tensor]


@pytest.fixture
def make(tiny: Path, tmp_path: Path) -> Make:
    def made(name: str, seed: int = 1, **keys: Any) -> Path:
        return make_peft_adapter(tiny, tmp_path / name, seed=seed, **keys)

    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "combined"


@pytest.fixture
def pair(make: Make) -> tuple[Path, Path]:
    """Of different ranks, scales and layers."""
    return make("one", r=4, use_rslora=True), make(
        "two", seed=2, r=8, lora_alpha=4, target_modules=["q_proj", "o_proj"]
    )


@pytest.mark.parametrize("how", ["linear", "cat"])
def test_a_weighted_sum_is_exact(lorikeet: Command, pair: tuple[Path, Path], tiny: Path, out: Path, how: str) -> None:
    shown = lorikeet("train", "combine", *pair, "--weights", "0.75,-0.5", "--how", how, "--out", out, "--json")
    assert (shown.code, shown.json and shown.json["rank"]) == (0, 12), shown.err
    one, two = (deltas_of(tiny, adapter) for adapter in pair)
    found = deltas_of(tiny, out)
    assert found.keys() == one.keys() | two.keys()
    for module, delta in found.items():
        nothing = torch.zeros_like(delta)
        wanted = 0.75 * one.get(module, nothing) - 0.5 * two.get(module, nothing)
        torch.testing.assert_close(delta, wanted, rtol=1e-4, atol=1e-5)
    assert shown.json["agreement"]["relative"] < 1e-4


def test_linear_takes_the_lowest_rank_that_says_it(lorikeet: Command, make: Make, out: Path) -> None:
    one, same = make("one", r=4), make("same", r=4)
    assert lorikeet("train", "combine", one, same, "--out", out, "--json").json["rank"] == 4
    cat = out.with_name("cat")
    assert lorikeet("train", "combine", one, same, "--how", "cat", "--out", cat, "--json").json["rank"] == 8


def test_pefts_own_linear_adds_factors_and_so_is_far_from_the_sum(
    lorikeet: Command, make: Make, tiny: Path, out: Path
) -> None:
    one, two = make("one"), make("two", seed=2)
    assert lorikeet("train", "combine", one, two, "--weights", "0.5,0.5", "--out", out).code == 0
    model = PeftModel.from_pretrained(base_model(tiny), one, adapter_name="one")
    model.load_adapter(two, "two")
    model.add_weighted_adapter(["one", "two"], [0.5, 0.5], "both", combination_type="linear")
    ours = deltas_of(tiny, out)
    sums = {name: (a + b) / 2 for name, a, b in paired(deltas_of(tiny, one), deltas_of(tiny, two))}
    theirs = {name: delta_of(model, name, "both") for name in sums}
    assert max(off(ours[name], sums[name]) for name in sums) < 1e-4
    assert min(off(theirs[name], sums[name]) for name in sums) > 0.3


def test_svd_is_the_best_of_its_rank(lorikeet: Command, make: Make, tiny: Path, out: Path) -> None:
    one, two = make("one", r=4), make("two", seed=2, r=4)
    words = ("train", "combine", one, two, "--how", "svd", "--max-error", 2, "--out", out, "--json")
    shown = lorikeet(*words)
    assert (shown.code, shown.json["rank"]) == (0, 4)
    assert 0.01 < shown.json["agreement"]["relative"] < 1
    found = deltas_of(tiny, out)
    for name, a, b in paired(deltas_of(tiny, one), deltas_of(tiny, two)):
        u, s, vt = torch.linalg.svd((a + b) / 2)
        torch.testing.assert_close(found[name], u[:, :4] * s[:4] @ vt[:4], rtol=1e-3, atol=1e-5)


def test_ties_and_dare_are_pefts_on_what_is_added_to_the_weights(
    lorikeet: Command, make: Make, tiny: Path, out: Path
) -> None:
    one, two = make("one"), make("two", seed=2)
    words = ("train", "combine", one, two, "--weights", "1,0.5", "--rank", 64, "--json")
    shown = lorikeet(*words, "--how", "ties", "--density", 0.3, "--out", out)
    assert (shown.code, shown.json["density"], shown.json["seed"]) == (0, 0.3, None), shown.err
    found = deltas_of(tiny, out)
    for name, a, b in paired(deltas_of(tiny, one), deltas_of(tiny, two)):
        wanted = merge_utils.ties([a, b], torch.tensor([1.0, 0.5]), 0.3)
        torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=1e-4)


def test_dare_drops_the_same_entries_for_the_same_seed(lorikeet: Command, make: Make, tiny: Path, out: Path) -> None:
    one, two = make("one"), make("two", seed=2)
    made = []
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        folder = out.with_name(name)
        words = ("--how", "dare_linear", "--rank", 64, "--seed", seed, "--out", folder)
        assert lorikeet("train", "combine", one, two, *words).code == 0
        made.append(deltas_of(tiny, folder))
    first, again, other = made
    layer = "model.layers.0.self_attn.q_proj"
    assert torch.equal(first[layer], again[layer])
    assert not torch.allclose(first[layer], other[layer])
    kept = first[layer].abs() > 1e-3 * first[layer].abs().max()
    assert 0.6 < float(kept.double().mean()) < 0.85  # an entry is gone where both are: one in four


def test_the_gate_takes_it_and_knows_its_parents(lorikeet: Command, make: Make, registry: Registry) -> None:
    for name, seed in (("support", 1), ("tone", 2)):
        members = folder_members(make(name, seed, r=4))
        registry.versions.publish(OPERATOR, "acme", name, members, base="tiny")
    shown = lorikeet("train", "combine", "acme/support@1", "acme/tone@1", "--publish", "acme/both", "--json")
    assert shown.code == 0, shown.err
    assert (shown.json["version"], shown.json["folder"]) == ("acme/both@1", None)
    version = registry.versions.get(OPERATOR, "acme", "both", 1)
    assert version.parents == ("acme/support@1", "acme/tone@1")
    assert (version.manifest.rank, version.origin["method"]) == (8, "combine")
    assert version.origin["combine"]["parts"] == [
        {"source": "acme/support@1", "weight": 0.5},
        {"source": "acme/tone@1", "weight": 0.5},
    ]
    line = registry.versions.lineage(OPERATOR, "acme", "both", 1)
    assert [one.label for one in line] == ["acme/both@1", "acme/support@1", "acme/tone@1"]


def test_folders_of_one_name_are_two_parts(lorikeet: Command, make: Make, out: Path) -> None:
    one, two = make("x/adapter"), make("y/adapter", seed=2)
    shown = lorikeet("train", "combine", one, two, "--weights", "0.75,0.25", "--out", out, "--json")
    assert shown.code == 0, shown.err
    assert shown.json["parts"] == [{"source": "adapter", "weight": 0.75}, {"source": "adapter", "weight": 0.25}]
    card = (out / "README.md").read_text()
    assert "0.75 * adapter + 0.25 * adapter" in card
    assert "combined from 2 adapters" in card


def test_a_dora_among_them_is_told_in_plain_lora(lorikeet: Command, make: Make, out: Path) -> None:
    one, dora = make("one", r=4), make("dora", seed=2, use_dora=True)
    shown = lorikeet("train", "combine", one, dora, "--out", out, "--json")
    assert shown.code == 0, shown.err
    assert shown.json["agreement"]["relative"] <= 0.1


def test_what_cannot_be_combined_leaves_nothing_behind(
    lorikeet: Command, make: Make, registry: Registry, home: Path, tiny: Path, tmp_path: Path, out: Path
) -> None:
    other = make_tiny_checkpoint(tmp_path / "other", seed=3)
    prepare_base(str(other), None, registry=registry, home=home, narrator=Narrator())
    one, two = make("one"), make("two", seed=2)
    named_nowhere = make_peft_adapter(tiny, tmp_path / "nowhere", base_name="no/such-base")
    foreign = make_peft_adapter(other, tmp_path / "foreign", base_name="other")
    for words, said in (
        ((one,), "two adapters or more"),
        ((one, one), "there twice"),
        ((one, one.parent / "two" / ".." / "one"), "there twice"),
        ((named_nowhere, one, "--base", "other"), "belongs to the base tiny"),
        ((one, two, "--base", "other"), "belongs to the base tiny"),
        ((one, two, "--weights", "1"), "as many numbers"),
        ((one, two, "--weights", "1,half"), "commas"),
        ((one, foreign), "two bases"),
        ((one, tiny), "whole model"),
        ((one, two, "--how", "cat", "--rank", 8), "take svd"),
        ((one, two, "--how", "svd", "--rank", 1), "higher --rank"),
    ):
        shown = lorikeet("train", "combine", *words, "--out", out)
        assert (shown.code, said in shown.err, "Traceback" in shown.err) == (2, True, False), shown.err
        assert not out.exists()
    assert "--out" in lorikeet("train", "combine", one, two).err
    assert not list(tmp_path.glob(".staging-*"))


def deltas_of(base: Path, adapter: Path) -> Deltas:
    """What the adapter adds to each weight, as PEFT says."""
    model = PeftModel.from_pretrained(base_model(base), adapter)
    names = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in tensors_of(adapter)}
    return {name: delta_of(model, name, "default") for name in names}


def delta_of(model: Any, module: str, adapter: str) -> torch.Tensor:
    delta: torch.Tensor = model.base_model.model.get_submodule(module).get_delta_weight(adapter).detach()
    return delta


def paired(one: Deltas, two: Deltas) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    return [(name, one[name], two[name]) for name in sorted(one)]


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
