"""What adapter_config.json may say."""

import json
from typing import Any

import pytest

from tests.adapters.judging import judged, refusal_of
from tests.builders import adapter_config


def config_with(**changes: Any) -> dict[str, Any]:
    return {**adapter_config(), **changes}


BAD_CONFIGS: dict[str, list[tuple[str, Any]]] = {
    "invalid_rank": [("r", value) for value in (0, -1, 1.5, "8", True, None, [1], {"q": 1})],
    "rank_too_high": [("r", value) for value in (65, 10**9, 10**4000)],
    "invalid_alpha": [("lora_alpha", value) for value in ("16", 0, -1, 1e38, 10**400, True, None, [16])],
    "scale_too_large": [("lora_alpha", 8 * 64 + 1)],
    "unsupported_config": [
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("task_type", "SEQ_CLS"),
        ("bias", "all"),
        ("bias", None),
        ("use_dora", True),
        ("use_dora", 1),
        ("use_rslora", 1),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["lm_head"]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", ["eva"]),
        ("loftq_config", {"loftq_bits": 4}),
        ("rank_pattern", {"(": 4}),
        ("alpha_pattern", {"q_proj": 4}),
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
    ],
    ids=map(str, range(5)),
)
def test_what_has_no_effect_on_a_trained_adapter_is_dropped(changes: dict[str, Any]) -> None:
    with judged(json.dumps(config_with(**changes)).encode()) as admitted, judged() as plain:
        assert admitted.manifest.digest == plain.manifest.digest
