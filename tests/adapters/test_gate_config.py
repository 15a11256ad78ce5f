"""What adapter_config.json may say."""

import json
from typing import Any

import pytest

from tests.adapters.judging import BASE, judged, read_safetensors, refusal_of
from tests.builders import adapter_config, adapter_tensors, safetensors_bytes


def config_with(**changes: Any) -> dict[str, Any]:
    return {**adapter_config(), **changes}


BAD_CONFIGS: dict[str, list[tuple[str, Any]]] = {
    "needs_conversion": [
        ("peft_type", "ADALORA"),
        ("use_dora", True),
        *(
            ("init_lora_weights", method)
            for method in ("pissa", "pissa_niter_16", "PiSSA", "olora", "corda", "loftq", "lora_ga")
        ),
    ],
    "base_mismatch": [("base_model_name_or_path", "sha256:" + "0" * 64)],
    "invalid_rank": [
        *(("r", value) for value in (0, -1, 1.5, "8", True, None, [1], {"q": 1})),
        *(("rank_pattern", {"q_proj": value}) for value in (0, -1, 1.5, "8", True, None, [1])),
    ],
    "rank_too_high": [
        *(("r", value) for value in (65, 10**9, 10**4000)),
        *(("rank_pattern", {"q_proj": value}) for value in (65, 10**9, 10**4000)),
    ],
    "invalid_alpha": [
        *(("lora_alpha", value) for value in ("16", 0, -1, 1e38, 10**400, True, None, [16])),
        *(("alpha_pattern", {"q_proj": value}) for value in ("16", 0, -1, 1e38, 10**400, True, None, [16])),
    ],
    "scale_too_large": [("lora_alpha", 8 * 64 + 1)],
    "unsupported_config": [
        *(("peft_type", other) for other in ("IA3", "LOHA", "LOKR", "VERA", "PREFIX_TUNING", "lora", "")),
        ("peft_type", 1),
        ("peft_type", []),
        ("peft_type", None),
        ("task_type", "SEQ_CLS"),
        ("bias", "all"),
        ("bias", None),
        ("use_dora", 1),
        ("use_rslora", 1),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["lm_head"]),
        ("init_lora_weights", "some_method_of_tomorrow"),
        ("init_lora_weights", "pissa_niter_"),
        ("init_lora_weights", ["eva"]),
        ("loftq_config", {"loftq_bits": 4}),
        ("rank_pattern", {"(": 4}),
        ("rank_pattern", {".*_proj": 4}),
        ("rank_pattern", {"q_proj$": 4}),
        ("rank_pattern", [4]),
        ("alpha_pattern", {"(a+)+": 4}),
        ("alpha_pattern", {"": 4}),
        ("alpha_pattern", "q_proj"),
        ("layer_replication", [[0, 2]]),
        ("layers_pattern", "(a+)+$"),
        ("alora_invocation_tokens", [1]),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["experts"]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("megatron_config", {"a": 1}),
        ("auto_map", {"AutoModel": "evil.Model"}),
        ("auto_mapping", {"base_model_class": "M", "parent_library": "evil"}),
        ("auto_mapping", {"base_model_class": "M", "parent_library": "transformers_evil"}),
        ("auto_mapping", {"base_model_class": "M"}),
        ("target_modules", "all-linear"),
        ("target_modules", "(a|a)*b"),
        ("target_modules", [".*proj"]),
        ("target_modules", []),
        ("target_modules", None),
        ("target_modules", {"q_proj": 1}),
        ("exclude_modules", "(a+)+$"),
        ("lora_dropout", 1),
        ("lora_dropout", "0"),
        ("inference_mode", "yes"),
        ("megatron_core", ["x"]),
        ("something_of_tomorrow", 1),
        ("\ud800", "lone surrogate"),
    ],
}


@pytest.mark.parametrize(
    ("code", "key", "value"),
    [
        pytest.param(code, key, value, id=f"{code}-{number}")
        for code, changes in BAD_CONFIGS.items()
        for number, (key, value) in enumerate(changes)
    ],
)
def test_a_config_that_asks_for_more_than_plain_lora_is_refused(code: str, key: str, value: object) -> None:
    refused = refusal_of(json.dumps(config_with(**{key: value})).encode())
    assert refused.code == code
    assert key.encode("ascii", "replace") in refused.message.encode("ascii", "replace") or key == "\ud800"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b'{"r": 8, "r": 8}',
        b'{"lora_alpha": NaN}',
        b'{"lora_alpha": -Infinity}',
        b"[" * 100_000,
        b'{"a":' * 20_000,
        b'{"r": ' + b"9" * 5000 + b"}",
        b'{"r": 8}',
        b"<html>503</html>",
    ],
    ids=map(str, range(14)),
)
def test_a_config_that_is_not_strict_json_with_the_needed_keys_is_refused(raw: bytes) -> None:
    assert refusal_of(raw).code == "invalid_config"


def test_infinity_in_disguise_is_no_alpha() -> None:
    raw = json.dumps(config_with()).replace('"lora_alpha": 16', '"lora_alpha": 1e999').encode()
    assert refusal_of(raw).code == "invalid_alpha"


@pytest.mark.parametrize(
    "changes",
    [
        {"task_type": None, "auto_mapping": {"base_model_class": "L", "parent_library": "transformers.models.llama"}},
        {"layers_to_transform": [0, 1], "exclude_modules": ["lm_head"], "init_lora_weights": "gaussian"},
        {"target_modules": ["self_attn.q_proj", "v_proj", "not_in_this_base"]},
        {"corda_config": None, "use_bdlora": None, "loftq_config": {}, "something_of_tomorrow": False},
        {"lora_alpha": 16.0},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0, "tau": 0.99}},
        {"rank_pattern": {"no_such_module": 4}, "alpha_pattern": {"no_such_module": 3}},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"self_attn.v_proj": 16, "v_proj": 99}},
        {"r": 4, "rank_pattern": {"q_proj": 8, "v_proj": 8}},
        {"base_model_name_or_path": BASE.fingerprint},
    ],
    ids=map(str, range(10)),
)
def test_what_has_no_effect_on_a_trained_adapter_is_dropped(changes: dict[str, Any]) -> None:
    with judged(json.dumps(config_with(**changes)).encode()) as admitted, judged() as plain:
        assert admitted.manifest.digest == plain.manifest.digest


# --- what a conversion would take ------------------------------------------------------------------------------------

COMMAND = "lorikeet train convert FOLDER --to lora"


@pytest.mark.parametrize("number", range(len(BAD_CONFIGS["needs_conversion"])))
def test_what_the_trainer_can_convert_is_refused_with_the_command_for_it(number: int) -> None:
    key, value = BAD_CONFIGS["needs_conversion"][number]
    [problem] = refusal_of(json.dumps(config_with(**{key: value})).encode()).problems
    assert COMMAND in problem.message
    assert ("residual" in problem.message) == (key == "init_lora_weights")


def test_adaloras_own_keys_are_not_held_against_it() -> None:
    config = {
        "peft_type": "ADALORA",
        "target_r": 4,
        "init_r": 12,
        "tinit": 0,
        "rank_pattern": {"model.layers.0.self_attn.q_proj.lora_E": [True, False]},
    }
    [problem] = refusal_of(json.dumps(config).encode()).problems
    assert (problem.code, COMMAND in problem.message) == ("needs_conversion", True)


# --- ranks and alphas by module ---------------------------------------------------------------------------------------


def rewritten(**changes: Any) -> dict[str, Any]:
    """The canonical config of an adapter of rank 8 on q_proj and rank 4 on v_proj."""
    tensors = adapter_tensors(BASE, 8, modules=["q_proj"]) | adapter_tensors(BASE, 4, modules=["v_proj"])
    with judged(json.dumps(config_with(**changes)).encode(), safetensors_bytes(tensors)) as admitted:
        config: dict[str, Any] = json.loads((admitted.folder / "adapter_config.json").read_bytes())
        assert read_safetensors(admitted.folder / "adapter_model.safetensors") == tensors
        assert admitted.manifest.rank == config["r"]
        return config


@pytest.mark.parametrize(
    "changes",
    [
        {"rank_pattern": {"v_proj": 4}, "alpha_pattern": {"v_proj": 12}},
        {"r": 4, "lora_alpha": 12, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"self_attn.q_proj": 16}},
        {
            "rank_pattern": {"^model.layers.0.self_attn.v_proj": 4, "1.self_attn.v_proj": 4},
            "alpha_pattern": {"v_proj": 12, "q_proj": 16},
        },
    ],
    ids=["v", "q", "paths"],
)
def test_ranks_and_alphas_by_module_are_kept_by_the_modules_whole_paths(changes: dict[str, Any]) -> None:
    config = rewritten(**changes)
    paths = [f"^model.layers.{layer}.self_attn.v_proj" for layer in (0, 1)]
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    assert config["rank_pattern"] == dict.fromkeys(paths, 4)
    assert config["alpha_pattern"] == dict.fromkeys(paths, 12)


def test_what_the_gate_writes_it_takes_again_unchanged() -> None:
    config = rewritten(rank_pattern={"v_proj": 4}, alpha_pattern={"v_proj": 12})
    assert rewritten(**config) == config


def test_the_first_key_that_fits_counts_as_in_peft() -> None:
    assert refusal_of(
        json.dumps(config_with(rank_pattern={"self_attn.q_proj": 4, "q_proj": 8})).encode()
    ).message.startswith("'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight' is [8, 32] where rank 4")


def test_a_modules_own_scale_is_bounded_too() -> None:
    refused = refusal_of(json.dumps(config_with(alpha_pattern={"q_proj": 8 * 64 + 1})).encode())
    assert {problem.code for problem in refused.problems} == {"scale_too_large"}


def test_a_modules_own_gain_is_measured_with_its_own_scale() -> None:
    tensors = safetensors_bytes(adapter_tensors(BASE, strength=20))
    refused = refusal_of(json.dumps(config_with(alpha_pattern={"q_proj": 500})).encode(), tensors)
    assert {problem.code for problem in refused.problems} == {"gain_too_large"}
    assert "v_proj" not in refused.message
