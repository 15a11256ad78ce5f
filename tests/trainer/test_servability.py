import ast
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import Module
from adapters.limits import MAX_ALPHA, MAX_SCALE
from trainer.job import Method, TrainJob, Variant
from trainer.job_file import job_of
from trainer.planning.servability import (
    HIGHEST_ALPHA,
    HIGHEST_SCALE,
    WITHOUT_LORA,
    Complaint,
    resolve_targets,
    servability,
    served_rank,
)

LLAMA = {"architectures": ["LlamaForCausalLM"]}
WIDTHS = {"self_attn.q_proj": (64, 64), "self_attn.v_proj": (64, 32), "mlp.up_proj": (64, 128)}
MODULES = {f"model.layers.{layer}.{name}": Module(*size) for layer in range(2) for name, size in WIDTHS.items()}


def job(**keys: Any) -> TrainJob:
    return job_of({"base": "tiny", "data": "chat.jsonl"} | keys, {}, "job.yaml")


def complaints(max_rank: int = 64, config: Any = LLAMA, **keys: Any) -> tuple[Complaint, ...]:
    return servability(job(**keys), MODULES, config, max_rank)


def one(code: str, found: tuple[Complaint, ...]) -> Complaint:
    (complaint,) = [complaint for complaint in found if complaint.code == code]
    return complaint


def test_plain_lora_on_all_linear_layers_is_served_as_it_is() -> None:
    assert complaints() == ()


def test_all_weights_need_no_room_for_an_adapter() -> None:
    assert complaints(max_rank=1, method="full") == ()


# --- where adapters go ------------------------------------------------------------------------------------------------


def test_all_linear_means_every_layer_of_the_base() -> None:
    assert set(resolve_targets(job(), MODULES)) == set(MODULES)


@pytest.mark.parametrize(
    ("name", "count"),
    [("q_proj", 2), ("self_attn.q_proj", 2), ("model.layers.1.mlp.up_proj", 1), ("proj", 0), ("attn.q_proj", 0)],
)
def test_a_target_is_the_end_of_a_path_from_a_dot_on(name: str, count: int) -> None:
    assert len(resolve_targets(job(target_modules=[name]), MODULES)) == count


def test_nothing_is_a_target_where_all_weights_are_trained() -> None:
    assert resolve_targets(job(method="full"), MODULES) == ()


def test_a_target_that_the_base_lacks_is_named_with_the_nearest() -> None:
    found = one("unknown_target", complaints(target_modules=["q_prj", "v_proj", "zzz"]))

    assert found.is_fatal
    assert "has no q_prj (did you mean q_proj?), zzz; it has q_proj, up_proj, v_proj" in found.sentence


@pytest.mark.parametrize("name", ["lm_head", "model.embed_tokens"])
def test_no_adapter_goes_on_the_ends_of_a_model(name: str) -> None:
    found = one("head_or_embedding", complaints(target_modules=["q_proj", name]))

    assert found.is_fatal
    assert name in found.sentence
    assert "method: full" in found.sentence


def test_a_base_without_linear_layers_has_no_place_for_an_adapter() -> None:
    (found,) = servability(job(), {}, LLAMA, 64)

    assert (found.code, found.is_fatal) == ("no_linear_layers", True)


# --- how large they are -----------------------------------------------------------------------------------------------


def test_a_rank_above_the_registrys_is_fatal() -> None:
    found = one("rank_above_max", complaints(max_rank=16, rank=32))

    assert found.is_fatal
    assert "Take rank: 16" in found.sentence


@pytest.mark.parametrize(("variant", "served"), [("lora", 10), ("dora", 10), ("adalora", 15), ("pissa", 20)])
def test_a_variant_has_the_rank_that_it_is_served_at(variant: str, served: int) -> None:
    assert served_rank(job(variant=variant, rank=10)) == served


def test_a_rank_that_only_the_conversion_exceeds_is_approximated() -> None:
    found = one("served_rank_above_max", complaints(max_rank=16, rank=16, variant="pissa"))

    assert not found.is_fatal
    assert "rank 32" in found.sentence


@pytest.mark.parametrize(("variant", "is_fatal"), [("lora", False), ("pissa", True)])
def test_a_rank_beyond_a_layers_width_is_of_no_use(variant: str, is_fatal: bool) -> None:  # noqa: FBT001
    found = one("rank_above_layer", complaints(rank=48, variant=variant, max_rank=512))

    assert found.is_fatal is is_fatal
    assert "Take rank: 32" in found.sentence


@pytest.mark.parametrize(
    ("keys", "is_refused"),
    [
        ({"rank": 1, "alpha": 64}, False),
        ({"rank": 1, "alpha": 65}, True),
        ({"rank": 16, "alpha": 512, "variant": "rslora"}, True),
        ({"rank": 1, "alpha": 65, "variant": "dora"}, False),
    ],
)
def test_a_scale_that_the_registry_refuses_is_refused_before_training(keys: dict[str, Any], is_refused: bool) -> None:  # noqa: FBT001
    assert ("scale_too_large" in {found.code for found in complaints(**keys)}) is is_refused


def test_the_bounds_are_the_registrys() -> None:
    assert (HIGHEST_SCALE, HIGHEST_ALPHA) == (MAX_SCALE, MAX_ALPHA)


# --- what is done about it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["dora", "adalora", "pissa"])
def test_what_the_engine_can_not_load_is_converted(variant: str) -> None:
    found = one("converted", complaints(variant=variant))

    assert not found.is_fatal
    assert "plain LoRA" in found.sentence


def test_the_base_that_qlora_trains_on_is_not_the_one_that_serves() -> None:
    assert "served on the base as it is" in one("served_unquantised", complaints(method="qlora")).sentence


# --- the base ---------------------------------------------------------------------------------------------------------


def test_a_base_that_the_engine_serves_without_lora_takes_all_weights_only() -> None:
    config = {"architectures": ["FalconForCausalLM"]}

    assert one("architecture_without_lora", complaints(config=config)).is_fatal
    assert complaints(config=config, method="full") == ()


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_base_that_is_quantised_already_is_not_trained_on(method: str) -> None:
    config = LLAMA | {"quantization_config": {"quant_method": "compressed-tensors"}}

    found = one("base_is_quantised", complaints(config=config, method=method))

    assert found.is_fatal
    assert "compressed-tensors" in found.sentence


def test_what_is_fatal_comes_first() -> None:
    found = complaints(max_rank=8, variant="dora", target_modules=["zzz"])

    assert [complaint.is_fatal for complaint in found] == [True, True, False]


@given(
    method=st.sampled_from([method.value for method in Method]),
    rank=st.integers(1, 600),
    alpha=st.floats(0.001, 1e6),
    targets=st.just("all-linear") | st.lists(st.text(min_size=1, alphabet="abq_proj.0"), min_size=1, max_size=3),
    config=st.sampled_from([{}, LLAMA, {"architectures": None}, {"quantization_config": "odd"}]),
)
def test_any_job_gets_complaints_of_one_line(method: str, rank: int, alpha: float, targets: Any, config: Any) -> None:
    keys = {"rank": rank, "alpha": alpha, "target_modules": targets} if method != Method.FULL else {}

    for found in servability(job(method=method, **keys), MODULES, config, 64):
        assert "\n" not in found.sentence
        assert found.sentence.endswith(".")


def test_variants_are_all_thought_of() -> None:
    assert {served_rank(job(variant=variant.value, rank=2)) for variant in Variant} == {2, 3, 4}


# --- the engine's own list --------------------------------------------------------------------------------------------


def test_the_architectures_without_lora_are_those_of_the_installed_engine() -> None:
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    models = Path(spec.origin).parent / "model_executor" / "models"
    classes = {
        name: re.findall(r"\w+", bases)
        for file in sorted(models.glob("*.py"))
        for name, bases in re.findall(r"^class (\w+)\(([^)]*)\)", file.read_text(), re.MULTILINE)
    }
    (served,) = (
        ast.literal_eval(node.value)
        for node in ast.parse((models / "registry.py").read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_TEXT_GENERATION_MODELS"
    )

    assert {name for name, (_, kind) in served.items() if not takes_lora(kind, classes)} == WITHOUT_LORA


def takes_lora(name: str, classes: dict[str, list[str]]) -> bool:
    return name == "SupportsLoRA" or any(takes_lora(base, classes) for base in classes.get(name, []) if base != name)
