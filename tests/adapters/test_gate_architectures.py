"""Bases of several architectures: what PEFT trains on them passes, and what is wrong with it does not."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters import Base, Limits, RefusedError, folder_members
from adapters.gate import Admitted, admit
from tests.adapters.judging import read_safetensors
from tests.architectures import ARCHITECTURES, described, last_names, load_model, make_checkpoint, make_peft_adapter
from tests.builders import Tensor, Tensors, safetensors_bytes

LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NAMES = {
    "phi": ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
    "phi3": ("qkv_proj", *LLAMA[3:4], "gate_up_proj", LLAMA[-1]),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return described(make_checkpoint(tmp_path_factory.mktemp("bases") / request.param, request.param))


@pytest.fixture(scope="module")
def adapter(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On every linear layer of the base, as PEFT saved it."""
    folder = tmp_path_factory.mktemp("adapters") / base.name
    return make_peft_adapter(Path(base.path), folder, target_modules=last_names(base))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return described(make_checkpoint(tmp_path_factory.mktemp("bases") / "one", "llama"))


@contextmanager
def admitted_from(folder: Path, base: Base) -> Iterator[Admitted]:
    with tempfile.TemporaryDirectory() as staged:
        yield admit(folder_members(folder), Path(staged), base, Limits())


def refused(folder: Path, base: Base) -> RefusedError:
    with pytest.raises(RefusedError) as caught, admitted_from(folder, base):
        pass
    return caught.value


def test_the_table_has_every_linear_layer_but_the_head_and_nothing_else(base: Base) -> None:
    names = NAMES.get(base.name, LLAMA)
    assert last_names(base) == sorted(names)
    assert len(base.modules) == 2 * len(names)
    assert all(module.startswith("model.layers.") for module in base.modules)


def test_what_peft_saves_for_all_of_its_layers_is_admitted(base: Base, adapter: Path) -> None:
    with admitted_from(adapter, base) as admitted:
        assert admitted.manifest.target_modules == tuple(last_names(base))
        assert admitted.manifest.tensor_count == 2 * len(base.modules)
        written = read_safetensors(admitted.folder / "adapter_model.safetensors")
        assert written == read_safetensors(adapter / "adapter_model.safetensors")
        assert admitted.warnings == ()


def transposed(tensors: Tensors, name: str) -> None:
    tensors[name] = Tensor("F32", tensors[name].shape[::-1], tensors[name].raw)


def cut(tensors: Tensors, name: str) -> None:
    tensors[name] = Tensor.of(np.ones((1, 1)))


def dropped(tensors: Tensors, name: str) -> None:
    del tensors[name]


def infinite(tensors: Tensors, name: str) -> None:
    tensors[name] = Tensor.of(np.full(tensors[name].shape, np.inf))


def deeper(tensors: Tensors, _name: str) -> None:
    tensors |= {one.replace(".layers.1.", ".layers.2."): tensor for one, tensor in tensors.items()}


def beside(tensors: Tensors, _name: str) -> None:
    tensors |= {f"base_model.model.lm_head.lora_{side}.weight": Tensor.of(np.ones((8, 8))) for side in "AB"}


@pytest.mark.parametrize(
    ("code", "spoil"),
    [
        ("shape_mismatch", transposed),
        ("shape_mismatch", cut),
        ("missing_pair", dropped),
        ("not_finite", infinite),
        ("unknown_module", deeper),
        ("unknown_module", beside),
    ],
)
def test_what_is_spoilt_is_refused(
    base: Base, adapter: Path, tmp_path: Path, code: str, spoil: Callable[[Tensors, str], None]
) -> None:
    tensors = read_safetensors(adapter / "adapter_model.safetensors")
    spoil(tensors, next(name for name, tensor in tensors.items() if tensor.shape[0] != tensor.shape[1]))
    (tmp_path / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
    assert refused(tmp_path, base).code == code


@pytest.mark.parametrize("other", ["phi", "phi3"])
def test_an_adapter_of_another_architecture_is_refused(llama: Base, tmp_path: Path, other: str) -> None:
    checkpoint = make_checkpoint(tmp_path / other, other)
    folder = make_peft_adapter(checkpoint, tmp_path / "adapter", target_modules=last_names(described(checkpoint)))
    problem = refused(folder, llama).problems[0]
    assert problem.code == "unknown_module"
    assert "None of the adapter's" in problem.message
    assert "trained on another base" in problem.message


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_an_adapter_of_the_head_or_the_embeddings_is_refused(llama: Base, tmp_path: Path) -> None:
    head = make_peft_adapter(Path(llama.path), tmp_path / "head", target_modules=["q_proj", "lm_head"])
    assert "has no linear layer 'lm_head'" in refused(head, llama).message
    embeddings = make_peft_adapter(Path(llama.path), tmp_path / "embeddings", target_modules=["q_proj", "embed_tokens"])
    assert "embeddings are not adapted" in refused(embeddings, llama).message


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}]
)
def test_what_peft_saves_and_only_a_conversion_makes_plain_is_refused_with_the_command(
    llama: Base, tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = make_peft_adapter(Path(llama.path), tmp_path / "adapter", target_modules=["q_proj", "v_proj"], **options)
    problems = refused(folder, llama).problems
    assert {problem.code for problem in problems} == {"needs_conversion"}
    assert "lorikeet train convert" in problems[0].message


def test_adalora_is_refused_with_the_command(llama: Base, tmp_path: Path) -> None:
    from peft import AdaLoraConfig

    config = AdaLoraConfig(target_modules=["q_proj", "v_proj"], total_step=10, tinit=1, tfinal=1, task_type="CAUSAL_LM")
    folder = make_peft_adapter(Path(llama.path), tmp_path / "adapter", config=config)
    problems = refused(folder, llama).problems
    assert {problem.code for problem in problems} == {"needs_conversion"}
    assert len(problems) == 2  # the config's word and the tensors' names


@pytest.mark.parametrize("options", [{"bias": "lora_only"}, {"modules_to_save": ["lm_head"]}])
def test_what_no_conversion_takes_along_is_refused(llama: Base, tmp_path: Path, options: dict[str, Any]) -> None:
    folder = make_peft_adapter(Path(llama.path), tmp_path / "adapter", target_modules=["q_proj", "v_proj"], **options)
    assert refused(folder, llama).code == "unsupported_config"


def test_ranks_and_alphas_by_module_mean_the_same_after_the_gate(llama: Base, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    folder = make_peft_adapter(
        Path(llama.path),
        tmp_path / "adapter",
        target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 3, "v_proj": 12},
        alpha_pattern={"^model.layers.0.mlp.down_proj": 5, "q_proj": 7},
    )
    tokens = torch.arange(20).reshape(1, 20)
    with torch.no_grad(), admitted_from(folder, llama) as admitted:
        config = json.loads((admitted.folder / "adapter_config.json").read_bytes())
        assert (config["r"], config["lora_alpha"], admitted.manifest.rank) == (12, 16, 12)
        logits = [
            PeftModel.from_pretrained(load_model(Path(llama.path)), where)(tokens).logits
            for where in (folder, admitted.folder)
        ]
        assert torch.equal(*logits)
        assert not torch.equal(logits[0], load_model(Path(llama.path))(tokens).logits)
