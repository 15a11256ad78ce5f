"""Adapters as PEFT makes and saves them, converted by the command, and run beside the originals."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, convert_to_lora, get_peft_model
from safetensors.torch import load_file, save_file

from adapters import Caller, Registry, folder_members
from tests.tiny_model import make_tiny_checkpoint
from tests.trainer.conftest import Command
from tests.trainer.peft_adapters import base_model, config_of, lost, make_peft_adapter, tensors_of

ENDLESS = r"(([a-z0-9_]|\.|_)+)+!"
"""A regular expression that takes for ever to say no."""

Make = Callable[..., Path]


@pytest.fixture
def make(tiny: Path, tmp_path: Path) -> Make:
    """Train an adapter on the base a little, and save it as PEFT does."""

    def made(name: str = "original", *, initial: Path | None = None, **keys: Any) -> Path:
        return make_peft_adapter(tiny, tmp_path / name, initial=initial, **keys)

    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "plain"


def test_a_dora_adapter_of_full_rank_answers_as_before(lorikeet: Command, make: Make, tiny: Path, out: Path) -> None:
    dora = make(use_dora=True)
    shown = lorikeet("train", "convert", dora, "--to", "lora", "--out", out, "--rank", 64, "--json")
    assert (shown.code, shown.json["method"], shown.json["rank"]) == (0, "DoRA", 64)
    assert shown.json["logits"]["relative"] < 1e-3
    assert max(shown.json["layers"].values()) < 1e-3
    assert lost(tiny, dora, out) < 1e-3


def test_pefts_own_converter_forgets_the_magnitude(lorikeet: Command, make: Make, tiny: Path, out: Path) -> None:
    dora = make(use_dora=True)
    lorikeet("train", "convert", dora, "--out", out, "--rank", 64)
    model = PeftModel.from_pretrained(base_model(tiny), dora)
    with pytest.warns(UserWarning, match="already a LoRA adapter"):
        config, tensors = convert_to_lora(model, rank=8)
    theirs = out.with_name("theirs")
    config.save_pretrained(theirs)
    save_file(tensors, theirs / "adapter_model.safetensors")
    assert lost(tiny, dora, theirs) > 0.05
    assert lost(tiny, dora, theirs) > 50 * lost(tiny, dora, out)


def test_the_measured_error_is_the_error(lorikeet: Command, make: Make, tiny: Path, out: Path) -> None:
    dora = make(use_dora=True)
    measured = lorikeet("train", "convert", dora, "--out", out, "--rank", 16, "--max-error", 1, "--json").json
    converted = tensors_of(out)
    merged = PeftModel.from_pretrained(base_model(tiny), dora).merge_and_unload()
    for module, error in measured["layers"].items():
        change = (merged.get_submodule(module).weight - base_model(tiny).get_submodule(module).weight).detach()
        b, a = (converted[f"base_model.model.{module}.lora_{side}.weight"] for side in "BA")
        assert error == pytest.approx(float((change - b @ a).norm() / change.norm()), rel=1e-2)
    assert 0.001 < measured["logits"]["relative"] < 1


def test_auto_takes_the_lowest_step_that_is_near_enough(lorikeet: Command, make: Make, out: Path) -> None:
    dora = make(use_dora=True)
    ladder = lorikeet("train", "convert", dora, "--out", out.with_name("all"), "--max-error", 1e-4, "--json").json
    assert [rung["rank"] for rung in ladder["tried"]] == [8, 16, 32, 64]
    enough = ladder["tried"][1]["logits"]["relative"] * 1.01
    shown = lorikeet("train", "convert", dora, "--out", out, "--max-error", enough, "--json").json
    assert [rung["rank"] for rung in shown["tried"]] == [8, 16]
    assert shown["logits"]["relative"] <= enough < shown["tried"][0]["logits"]["relative"]
    assert {min(tensor.shape) for tensor in tensors_of(out).values()} == {16}


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT's, of layers that AdaLoRA left no rank
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")  # PEFT's, of its own masks
@pytest.mark.parametrize("allocated", [False, True])
def test_adalora_is_folded_exactly(lorikeet: Command, make: Make, tiny: Path, out: Path, *, allocated: bool) -> None:
    adalora = make(adalora=True, init_r=6, target_r=2, total_step=4 if allocated else 100, tinit=1 if allocated else 50)
    ranks = {tensor.shape[0] for name, tensor in tensors_of(adalora).items() if name.endswith("lora_A")}
    assert (len(ranks) > 1) == allocated
    shown = lorikeet("train", "convert", adalora, "--out", out, "--json").json
    assert shown["method"] == "AdaLoRA"
    assert shown["rank"] == max(ranks)
    assert shown["logits"]["relative"] < 1e-5
    assert lost(tiny, adalora, out) < 1e-5


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_follows_from_the_base_is_taken_off_again(
    lorikeet: Command, make: Make, tiny: Path, out: Path, start: str
) -> None:
    adapter = make(init_lora_weights=start, r=4)
    shown = lorikeet("train", "convert", adapter, "--out", out, "--json").json
    assert (shown["method"], shown["rank"]) == ("PiSSA-style", 8)
    assert lost(tiny, adapter, out) < 1e-3


def test_a_start_at_random_needs_the_adapter_before_training(
    lorikeet: Command, make: Make, tmp_path: Path, out: Path
) -> None:
    adapter = make(init_lora_weights="pissa_niter_2", r=4, initial=tmp_path / "initial")
    refused = lorikeet("train", "convert", adapter, "--out", out)
    assert (refused.code, "--initial FOLDER" in refused.err, out.exists()) == (2, True, False)
    shown = lorikeet("train", "convert", adapter, "--out", out, "--initial", tmp_path / "initial", "--json").json
    assert shown["rank"] == 8
    assert shown["logits"]["relative"] < 1e-3


@pytest.mark.parametrize(
    "keys",
    [
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"v_proj": 3, "^model.layers.1.mlp.down_proj": 5}},
        {"use_rslora": True, "rank_pattern": {"down_proj": 2}},
        {"target_modules": r".*layers\.1.*v_proj"},
    ],
)
def test_a_lora_of_mixed_ranks_becomes_a_uniform_one(
    lorikeet: Command, make: Make, tiny: Path, out: Path, keys: dict[str, Any]
) -> None:
    mixed = make(r=4, **keys)
    shown = lorikeet("train", "convert", mixed, "--out", out, "--json").json
    assert shown["logits"]["relative"] < 1e-5
    assert lost(tiny, mixed, out) < 1e-5
    ranks = {min(tensor.shape) for tensor in tensors_of(out).values()}
    assert ranks == {shown["rank"]}


def test_the_gate_takes_what_was_converted(
    lorikeet: Command, make: Make, registry: Registry, tiny: Path, out: Path
) -> None:
    assert lorikeet("train", "convert", make(use_dora=True), "--out", out, "--rank", 64, "--base", tiny).code == 0
    assert {file.name for file in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    (base,) = registry.bases.list(Caller.operator())
    published = registry.versions.publish(
        Caller.operator(), "acme", "support", folder_members(out), base=base.fingerprint
    )
    assert published.version.manifest.rank == 64


def test_the_figures_are_told_and_lie_beside_the_weights(lorikeet: Command, make: Make, out: Path) -> None:
    shown = lorikeet("train", "convert", make(use_dora=True), "--out", out, "--rank", 64)
    told = (out / "README.md").read_text()
    assert "rank 64" in shown.out
    assert "rank 64: logits" in told
    assert told.count("| model.layers.") == 6
    assert str(out.parent) not in told


def test_above_the_bound_nothing_is_written(lorikeet: Command, make: Make, out: Path) -> None:
    shown = lorikeet("train", "convert", make(use_dora=True), "--out", out, "--max-rank", 16, "--max-error", 0.001)
    assert shown.code == 2
    assert " at rank 8, " in shown.err
    assert "conversion_above_bound" in shown.err
    assert [entry.name for entry in out.parent.iterdir() if "staging" in entry.name or entry == out] == []


def test_an_empty_folder_is_filled_and_any_other_left_alone(lorikeet: Command, make: Make, out: Path) -> None:
    adapter = make(r=2, rank_pattern={"q_proj": 3})
    out.mkdir()
    assert lorikeet("train", "convert", adapter, "--out", out).code == 0
    before = (out / "README.md").read_bytes()
    again = lorikeet("train", "convert", adapter, "--out", out)
    assert (again.code, "not an empty folder" in again.err) == (2, True)
    assert (out / "README.md").read_bytes() == before


def test_an_untrained_adapter_stays_one(lorikeet: Command, tiny: Path, tmp_path: Path, out: Path) -> None:
    model = get_peft_model(base_model(tiny), config_of({"use_dora": True}))
    model.save_pretrained(tmp_path / "fresh", save_embedding_layers=False)
    shown = lorikeet("train", "convert", tmp_path / "fresh", "--out", out, "--base", "tiny", "--json")
    assert (shown.code, shown.json["rank"]) == (0, 8)


@pytest.mark.parametrize(
    "keys",
    [
        {"target_modules": ENDLESS},
        {"exclude_modules": ENDLESS},
        {"layers_pattern": [ENDLESS], "layers_to_transform": [0]},
        {"rank_pattern": {"no_such_module": 3}},
    ],
)
def test_what_names_no_layer_of_the_adapter_is_not_run(
    lorikeet: Command, make: Make, tiny: Path, out: Path, keys: dict[str, Any]
) -> None:
    adapter = make(r=4)
    whole = shutil.copytree(adapter, adapter.with_name("whole"))
    change_config(adapter, **keys)
    assert lorikeet("train", "convert", adapter, "--out", out).code == 0
    assert lost(tiny, whole, out) < 1e-5


@pytest.mark.parametrize("named", [(), ("--base", "own")])
@pytest.mark.parametrize("kind", ["config.json", "tokenizer_config.json"])
def test_code_beside_the_weights_is_not_run(
    lorikeet: Command,
    make: Make,
    tmp_path: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: tuple[str, ...],
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    adapter, own = make(use_dora=True), make_tiny_checkpoint(tmp_path / "own")
    change_config(adapter, base_model_name_or_path=str(own))
    (own / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\nclass Evil: pass\n")
    stated = json.loads((own / kind).read_text())
    classes = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Evil")
    stated |= {"auto_map": classes if kind == "config.json" else {"AutoTokenizer": ["evil.Evil", None]}}
    stated |= {"model_type": "evil"} if kind == "config.json" else {"tokenizer_class": "Evil"}
    (own / kind).write_text(json.dumps(stated))
    shown = lorikeet("train", "convert", adapter, "--out", out, *named)
    assert not (tmp_path / "marker").exists()
    assert "custom code? [y/N]" not in shown.out + shown.err
    assert (shown.code, out.exists(), "Traceback" in shown.err) == (2, False, False)


def test_a_base_that_the_registry_knows_is_not_named_by_its_folder(
    lorikeet: Command, make: Make, tiny: Path, out: Path
) -> None:
    adapter = make(use_dora=True)
    change_config(adapter, base_model_name_or_path=str(tiny))
    shown = lorikeet("train", "convert", adapter, "--out", out)
    assert (shown.code, "give it as --base tiny" in shown.err, out.exists()) == (2, True, False)


def test_a_folder_that_can_not_be_moved_into_place_is_one_clear_line(
    lorikeet: Command, make: Make, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make(r=2, rank_pattern={"q_proj": 3})

    def taken(*_: object) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(Path, "rename", taken)
    shown = lorikeet("train", "convert", adapter, "--out", out)
    assert (shown.code, "can't be written: Directory not empty" in shown.err) == (2, True)
    assert [entry.name for entry in out.parent.iterdir() if "staging" in entry.name or entry == out] == []


def linked(out: Path) -> None:
    out.with_name("empty").mkdir()
    out.symlink_to(out.with_name("empty"))


def dangling(out: Path) -> None:
    out.symlink_to(out.with_name("nowhere"))


def occupied(out: Path) -> None:
    out.mkdir()
    (out / "file").touch()


def nothing(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "words", "complaint"),
    [
        (linked, (), "is a link"),
        (dangling, (), "is a link"),
        (occupied, (), "not an empty folder"),
        (nothing, ("--out", "no/such/place"), "there is no folder"),
        (nothing, ("--rank", "0"), "write a whole number from 1 to 512, or auto"),
    ],
)
def test_what_is_wrong_with_the_words_is_said_before_the_libraries_load(
    lorikeet: Command,
    tmp_path: Path,
    out: Path,
    prepare: Callable[[Path], None],
    words: tuple[str, ...],
    complaint: str,
) -> None:
    prepare(out)
    shown = lorikeet("train", "convert", tmp_path / "not-even-read", "--out", out, *words)
    assert (shown.code, complaint in shown.err) == (2, True)
    assert "loading the libraries" not in shown.err


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def cut_config(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(path.read_text()[:100])


def cut_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def no_magnitude(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.pop(next(name for name in tensors if "magnitude" in name)))


def not_a_number(folder: Path) -> None:
    change_tensors(folder, lambda tensors: next(iter(tensors.values())).fill_(float("nan")))


def strange_tensor(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.ones(2)}))


def wrong_rank(folder: Path) -> None:
    change_config(folder, r=5)


def unknown_method(folder: Path) -> None:
    change_config(folder, peft_type="VERA")


def whole_modules(folder: Path) -> None:
    change_config(folder, modules_to_save=["lm_head"])


def unknown_base(folder: Path) -> None:
    change_config(folder, base_model_name_or_path="nobody/knows")


def base_by_folder(folder: Path) -> None:
    shutil.copytree(make_tiny_checkpoint(folder / "base"), folder / "own")
    change_config(folder, base_model_name_or_path=str(folder / "own"))


def rank_by_pattern(folder: Path) -> None:
    change_config(folder, rank_pattern={ENDLESS: 8})


def alpha_by_pattern(folder: Path) -> None:
    change_config(folder, alpha_pattern={ENDLESS: 8})


def no_base(folder: Path) -> None:
    change_config(folder, base_model_name_or_path=None)


def unknown_start(folder: Path) -> None:
    change_config(folder, init_lora_weights="loftq", use_dora=False)


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (no_folder, "there is no such folder"),
        (pickled, "a pickle (adapter_model.bin)"),
        (cut_config, "can't be read as JSON"),
        (cut_weights, "can't be read as safetensors"),
        (no_magnitude, "has no lora_magnitude_vector"),
        (not_a_number, "holds NaN or infinity"),
        (strange_tensor, "is no tensor of a DoRA adapter"),
        (wrong_rank, "where the config's rank and the base want [5, "),
        (unknown_method, "peft_type: input should be 'LORA' or 'ADALORA'"),
        (whole_modules, "modules_to_save must be null"),
        (unknown_base, "The registry has no base 'nobody/knows'"),
        (base_by_folder, "The registry has no base"),
        (rank_by_pattern, "rank_pattern must be by the modules' plain names"),
        (alpha_by_pattern, "alpha_pattern must be by the modules' plain names"),
        (no_base, "give it as --base NAME|PATH"),
        (unknown_start, "nothing is known of init_lora_weights 'loftq'"),
    ],
)
def test_a_bad_adapter_is_one_clear_line(
    lorikeet: Command, make: Make, out: Path, harm: Callable[[Path], None], complaint: str
) -> None:
    adapter = make(use_dora=True)
    harm(adapter)
    shown = lorikeet("train", "convert", adapter, "--out", out)
    assert (shown.code, out.exists()) == (2, False)
    assert complaint in shown.err
    assert shown.err.splitlines()[-1].startswith("lorikeet: ")
    assert "Traceback" not in shown.err


def test_a_base_of_other_shapes_is_refused(lorikeet: Command, make: Make, tmp_path: Path, out: Path) -> None:
    other = make_tiny_checkpoint(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    narrow = {name: tensor[:, :32] if name.endswith("q_proj.weight") else tensor for name, tensor in weights.items()}
    save_file({name: tensor.contiguous() for name, tensor in narrow.items()}, other / "model.safetensors")
    adapter = make(use_dora=True)
    shown = lorikeet("train", "convert", adapter, "--out", out, "--base", other)
    assert (shown.code, "belongs to the base tiny" in shown.err) == (2, True)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    shown = lorikeet("train", "convert", adapter, "--out", out, "--base", other)
    assert (shown.code, out.exists()) == (2, False)
    assert "is this the base that it was trained on?" in shown.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--rank", "many"), "write a whole number from 1 to 512, or auto"),
        (("--initial", "."), "--initial is for PiSSA and its like"),
        (("--out", "no/such/place"), "there is no folder"),
    ],
)
def test_a_conversion_that_can_not_be_is_one_clear_line(
    lorikeet: Command, make: Make, out: Path, words: tuple[str, ...], complaint: str
) -> None:
    shown = lorikeet("train", "convert", make(use_dora=True), "--out", out, *words)
    assert (shown.code, complaint in shown.err, out.exists()) == (2, True, False)


def change_config(folder: Path, **keys: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = tensors_of(folder)
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
