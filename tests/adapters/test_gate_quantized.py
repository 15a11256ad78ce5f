"""Models in fewer bits through the gate: what it admits, what it makes of it, and what it refuses."""

import json
import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from adapters import Base, Caller, Module
from adapters.gate.checkpoint.quantization import read_quantization
from adapters.refusals import Faults
from tests.adapters.judging_models import codes_of, judged, refusal_of
from tests.builders import Tensor, Tensors, make_base_of, model_documents, write_model
from tests.quantising import FP8, SCHEMES, W4A16, W4A16_ZERO_POINT, W8A8, quantised_tensors, quantization_config

OPERATOR = Caller.operator()
LAYER = "model.layers.0"
QUERY = f"{LAYER}.self_attn.q_proj"
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
MODULES = {
    f"{LAYER}.self_attn.q_proj": Module(64, 64),
    f"{LAYER}.self_attn.k_proj": Module(64, 32),
    f"{LAYER}.self_attn.v_proj": Module(64, 32),
    f"{LAYER}.self_attn.o_proj": Module(64, 64),
    f"{LAYER}.mlp.gate_proj": Module(64, 128),
    f"{LAYER}.mlp.up_proj": Module(64, 128),
    f"{LAYER}.mlp.down_proj": Module(128, 64),
}
Config = dict[str, Any]


def plain_weights() -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.weight": (size.out_features, size.in_features) for name, size in MODULES.items()
    }
    shapes |= {"model.embed_tokens.weight": (8, 64), "lm_head.weight": (8, 64), "model.norm.weight": (64,)}
    shapes |= {f"{LAYER}.{name}_layernorm.weight": (64,) for name in ("input", "post_attention")}
    return {name: random.normal(0, 0.1, shape) for name, shape in shapes.items()}


WEIGHTS = plain_weights()


def plain_folder(path: Path) -> Path:
    documents = model_documents()
    documents["config.json"] |= SIZES
    return write_model(path, documents, {name: Tensor.of(values) for name, values in WEIGHTS.items()})


def known_base() -> Base:
    with tempfile.TemporaryDirectory() as folder:
        return replace(make_base_of(plain_folder(Path(folder) / "base")), modules=MODULES)


BASE = known_base()


def quantised_folder(
    path: Path,
    scheme: str,
    *,
    config: Callable[[Config], object] | None = None,
    tensors: Callable[[Tensors], object] | None = None,
) -> Path:
    """A checkpoint as `lorikeet train quantize` makes it; `config` and `tensors` change what is written."""
    documents = model_documents()
    documents["config.json"] |= {**SIZES, "quantization_config": quantization_config(scheme)}
    stored = quantised_tensors(WEIGHTS, MODULES, scheme)
    if config is not None:
        config(documents["config.json"]["quantization_config"])
    if tensors is not None:
        tensors(stored)
    return write_model(path, documents, stored)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_model_in_fewer_bits_passes_and_is_written_in_our_words(scheme: str, tmp_path: Path) -> None:
    folder = quantised_folder(tmp_path / "small", scheme)
    (folder / "recipe.yaml").write_text("not: read")
    with judged(folder, BASE) as admitted:
        stored = json.loads((admitted.folder / "config.json").read_bytes())["quantization_config"]
        assert set(stored) == {"quant_method", "format", "quantization_status", "config_groups", "ignore"}
        (group,) = stored["config_groups"].values()
        assert group["weights"]["num_bits"] == (8 if scheme in {W8A8, FP8} else 4)
        assert (group["input_activations"] is None) is (scheme in {W4A16, W4A16_ZERO_POINT})
        assert admitted.manifest.base_fingerprint == BASE.fingerprint
        assert not (admitted.folder / "recipe.yaml").exists()

        # What is stored passes again as itself
        with judged(admitted.folder, BASE) as again:
            assert again.manifest.digest == admitted.manifest.digest


ATTENTION = [f"{LAYER}.self_attn.{letter}_proj" for letter in "kqv"]


def keep(modules: list[str], tensors: Tensors) -> None:
    for name in [name for name in tensors if name.rpartition(".")[0] in modules]:
        del tensors[name]
    tensors |= {f"{module}.weight": Tensor.of(WEIGHTS[f"{module}.weight"]) for module in modules}


@pytest.mark.parametrize("modules", [ATTENTION, [f"{LAYER}.mlp.down_proj"]])
def test_layers_that_are_named_stay_as_they_were(modules: list[str], tmp_path: Path) -> None:
    config = set_in("ignore", to=["lm_head", *modules])
    folder = quantised_folder(tmp_path / "small", W4A16, config=config, tensors=partial(keep, modules))
    with judged(folder, BASE) as admitted:
        stored = json.loads((admitted.folder / "config.json").read_bytes())["quantization_config"]
        assert stored["ignore"] == sorted(["lm_head", *modules])


@pytest.mark.parametrize(
    "modules", [ATTENTION[:1], ATTENTION[1:], [f"{LAYER}.mlp.gate_proj"], [f"{LAYER}.mlp.up_proj"]]
)
def test_layers_of_which_the_engine_makes_one_are_named_together(modules: list[str], tmp_path: Path) -> None:
    config = set_in("ignore", to=["lm_head", *modules])
    refused = refusal_of(
        quantised_folder(tmp_path / "small", W4A16, config=config, tensors=partial(keep, modules)), BASE
    )
    assert "vLLM makes one layer of them; name all, or none" in refused.message


def put(path: tuple[str, ...], value: object, how: Config) -> None:
    place: Any = how
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value


def set_in(*path: str, to: object) -> Callable[[Config], None]:
    return partial(put, path, to)


GROUP = ("config_groups", "group_0")


@pytest.mark.parametrize(
    "change",
    [
        set_in("quant_method", to="gptq"),
        set_in("quantization_status", to="frozen"),
        set_in("kv_cache_scheme", to={"num_bits": 8}),
        set_in("sparsity_config", to={"format": "dense"}),
        set_in("transform_config", to={"config_groups": {"a": {}}}),
        set_in("format", to="marlin-24"),
        set_in("format", to="int-quantized"),
        set_in("ignore", to=["re:.*q_proj", "lm_head"]),
        set_in("ignore", to=[]),
        set_in("ignore", to="lm_head"),
        set_in("config_groups", to={}),
        set_in("config_groups", to=[]),
        set_in(*GROUP, "targets", to=["re:.*"]),
        set_in(*GROUP, "targets", to=["Linear", "Embedding"]),
        set_in(*GROUP, "output_activations", to={"num_bits": 8}),
        set_in(*GROUP, "input_activations", to={"num_bits": 8}),
        set_in(*GROUP, "format", to=["pack-quantized"]),
        set_in(*GROUP, "weights", to=None),
        set_in(*GROUP, "weights", "num_bits", to=3),
        set_in(*GROUP, "weights", "num_bits", to=True),
        set_in(*GROUP, "weights", "type", to=["int"]),
        set_in(*GROUP, "weights", "group_size", to=48),
        set_in(*GROUP, "weights", "group_size", to=-1),
        set_in(*GROUP, "weights", "strategy", to="tensor_group"),
        set_in(*GROUP, "weights", "actorder", to="group"),
        set_in(*GROUP, "weights", "block_structure", to=[128, 128]),
        set_in(*GROUP, "weights", "dynamic", to=True),
        set_in(*GROUP, "weights", "symmetric", to="yes"),
        set_in(*GROUP, "weights", "auto_map", to={"a": "b"}),
    ],
)
def test_a_way_of_quantising_that_is_not_ours_is_refused(change: Callable[[Config], None], tmp_path: Path) -> None:
    assert codes_of(quantised_folder(tmp_path / "small", W4A16, config=change), BASE) == {"unsupported_config"}


def replace_tensor(name: str, tensor: Tensor, tensors: Tensors) -> None:
    tensors[name] = tensor


def replaced(name: str, tensor: Tensor) -> Callable[[Tensors], None]:
    return partial(replace_tensor, name, tensor)


@pytest.mark.parametrize(
    ("scheme", "change", "code"),
    [
        (W4A16, lambda tensors: tensors.pop(f"{QUERY}.weight_scale"), "tensor_mismatch"),
        (W4A16, replaced(f"{QUERY}.weight_g_idx", Tensor("I32", (64,), bytes(256))), "tensor_mismatch"),
        (W4A16, replaced(f"{QUERY}.weight", Tensor.of(np.zeros((64, 64)))), "tensor_mismatch"),
        (W4A16, replaced(f"{QUERY}.weight_packed", Tensor("I32", (64, 4), bytes(1024))), "tensor_mismatch"),
        (W4A16, replaced(f"{QUERY}.weight_packed", Tensor("I8", (64, 8), bytes(512))), "unsupported_dtype"),
        (W4A16, replaced(f"{QUERY}.weight_scale", Tensor("I8", (64, 2), bytes(128))), "unsupported_dtype"),
        (W4A16, replaced(f"{QUERY}.weight_scale", Tensor.of(np.full((64, 2), np.nan))), "not_finite"),
        (W4A16, replaced(f"{QUERY}.weight_scale", Tensor.of(np.full((64, 2), 2e36))), "not_finite"),
        (W4A16, replaced(f"{QUERY}.weight_shape", Tensor("I64", (2,), b"\1" * 16)), "tensor_mismatch"),
        (W4A16, replaced(f"{QUERY}.weight_packed", Tensor("I32", (512,), bytes(2048))), "tensor_mismatch"),
        (W4A16, replaced(f"{QUERY}.weight_packed", Tensor("I32", (64, 4, 2), bytes(2048))), "tensor_mismatch"),
        (W4A16, replaced(f"{QUERY}.weight_shape", Tensor("BF16", (3,), bytes(6))), "tensor_mismatch"),
        (W4A16, replaced(f"{QUERY}.weight_shape", Tensor("I32", (2,), bytes(8))), "unsupported_dtype"),
        (W4A16, replaced(f"{QUERY}.weight_shape", Tensor("I64", (), bytes(8))), "tensor_mismatch"),
        (W4A16, replaced(f"{QUERY}.weight_shape", Tensor("I64", (0,), b"")), "tensor_mismatch"),
        (W8A8, replaced(f"{QUERY}.weight_scale", Tensor("F8_E4M3", (64, 1), b"\x38" * 64)), "unsupported_dtype"),
        (W4A16, replaced("model.norm.weight", Tensor("I8", (64,), bytes(64))), "unsupported_dtype"),
        (W4A16, replaced("lm_head.weight", Tensor("I8", (8, 64), bytes(512))), "unsupported_dtype"),
        (W8A8, replaced(f"{QUERY}.weight", Tensor.of(np.zeros((64, 64)))), "unsupported_dtype"),
        (W8A8, replaced(f"{QUERY}.weight_zero_point", Tensor("I8", (64, 1), bytes(64))), "tensor_mismatch"),
        (FP8, replaced(f"{QUERY}.weight", Tensor("F8_E4M3", (64, 64), b"\x7f" * 4096)), "not_finite"),
        (FP8, replaced(f"{QUERY}.weight", Tensor("F8_E5M2", (64, 64), bytes(4096))), "unsupported_dtype"),
        (W4A16_ZERO_POINT, lambda tensors: tensors.pop(f"{QUERY}.weight_zero_point"), "tensor_mismatch"),
    ],
)
def test_tensors_that_do_not_follow_from_the_scheme_are_refused(
    scheme: str, change: Callable[[Tensors], object], code: str, tmp_path: Path
) -> None:
    assert code in codes_of(quantised_folder(tmp_path / "small", scheme, tensors=change), BASE)


def test_a_shape_as_large_as_a_shard_is_refused_without_being_read(tmp_path: Path) -> None:
    size = 32 << 20
    large = replaced(f"{QUERY}.weight_shape", Tensor("I64", (size // 8,), bytes(size)))
    folder = quantised_folder(tmp_path / "small", W4A16, tensors=large)
    tracemalloc.start()
    try:
        assert codes_of(folder, BASE) == {"tensor_mismatch"}
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size // 2


def without_scales(tensors: Tensors) -> None:
    tensors |= {name: Tensor.of(np.zeros(tensors[name].shape)) for name in tensors if name.endswith(".weight_scale")}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scales_that_are_all_zero_leave_nothing_of_the_layers(scheme: str, tmp_path: Path) -> None:
    assert codes_of(quantised_folder(tmp_path / "small", scheme, tensors=without_scales), BASE) == {"all_zero"}


def test_outputs_that_zero_points_do_not_pack_are_refused_as_such_and_only_with_zero_points() -> None:
    odd = replace(BASE, modules={**MODULES, QUERY: Module(64, 60)})
    faults = Faults()
    assert read_quantization(quantization_config(W4A16), odd, faults=faults) is not None
    assert read_quantization(quantization_config(W4A16_ZERO_POINT), odd, faults=faults) is None
    assert "q_proj' has 60 outputs, which is no multiple of 8" in faults.refusal().message


def test_a_group_that_does_not_divide_a_layer_is_refused_with_the_layers_name(tmp_path: Path) -> None:
    narrow = replace(BASE, modules={**MODULES, QUERY: Module(96, 64)})
    change = set_in(*GROUP, "weights", "group_size", to=64)
    refused = refusal_of(quantised_folder(tmp_path / "small", W4A16, config=change), narrow)
    assert "q_proj' is 96 wide, which is no multiple of the group size 64" in refused.message


def test_weights_in_fewer_bits_that_the_config_does_not_tell_of_are_refused(tmp_path: Path) -> None:
    folder = quantised_folder(tmp_path / "small", W8A8, config=lambda how: how.clear())
    assert "unsupported_dtype" in codes_of(folder, BASE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 200) | st.sampled_from(["int", "float", "group", "channel", "re:.*"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["weights", "type", "a"]), inner),
    max_leaves=8,
)


@given(st.sampled_from(SCHEMES), st.data())
def test_whatever_a_config_says_is_understood_or_refused(scheme: str, data: st.DataObject) -> None:
    how = quantization_config(scheme)
    place: Any = how
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(JSON)
        break
    faults = Faults()
    found = read_quantization(how, BASE, faults=faults)
    assert (found is None) is bool(faults) or how == {}
