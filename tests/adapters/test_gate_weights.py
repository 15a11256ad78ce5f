"""What adapter_model.safetensors may hold."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from adapters import Base
from tests.adapters.judging import BASE, GOOD, Q0, judged, refusal_of
from tests.builders import Tensor, Tensors, adapter_config, adapter_tensors, make_base, safetensors_bytes

Change = Callable[[Tensors], object]


def shaped(side: str, *shape: int) -> Change:
    return lambda tensors: tensors.update({f"{Q0}.lora_{side}.weight": Tensor.of(np.ones(shape))})


def valued(side: str, value: float, dtype: str = "F32") -> Change:
    values = np.zeros((8, 32) if side == "A" else (32, 8))
    values[-1, -1] = value
    return lambda tensors: tensors.update({f"{Q0}.lora_{side}.weight": Tensor.of(values, dtype)})


def filled(a: float, b: float) -> Change:
    """The pair of Q0, each half with one value throughout: its norm is 16 times that."""
    halves = {f"{Q0}.lora_A.weight": np.full((8, 32), a), f"{Q0}.lora_B.weight": np.full((32, 8), b)}
    return lambda tensors: tensors.update({name: Tensor.of(values) for name, values in halves.items()})


def renamed(name: str) -> Change:
    return lambda tensors: tensors.update({name: tensors.pop(f"{Q0}.lora_A.weight")})


def typed(dtype: str, bits: int) -> Change:
    return lambda tensors: tensors.update({f"{Q0}.lora_A.weight": Tensor(dtype, (8, 32), bytes(8 * 32 * bits // 8))})


BAD_TENSORS: dict[str, list[Change]] = {
    "shape_mismatch": [
        shaped("A", 8, 33),
        shaped("A", 8, 31),
        shaped("A", 32, 8),
        shaped("A", 4, 32),
        shaped("A", 16, 32),
        shaped("A", 256),
        shaped("A", 1, 8, 32),
        shaped("A", 0, 32),
        shaped("A", 1, 1),
        shaped("A"),
        shaped("B", 64, 8),
        shaped("B", 8, 32),
        shaped("B", 1, 1),
    ],
    "not_finite": [
        *(valued(side, value) for side in "AB" for value in (math.nan, math.inf, -math.inf, 3.4e38, -3.4e38)),
        *(valued("A", value, "BF16") for value in (math.nan, math.inf)),
        *(valued("A", value, "F16") for value in (math.nan, -math.inf)),
        valued("B", 2e38),
    ],
    "gain_too_large": [
        filled(3e38, 3e36),
        filled(3e38, 3e-38),
        filled(3e-38, 1.6e38),
        filled(3e38, 0),
        filled(1, 20),
        *(valued(side, value) for side in "AB" for value in (1e30, -1e6)),
    ],
    "unsupported_dtype": [
        *(typed(dtype, 8) for dtype in ("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2")),
        typed("F4", 4),
        typed("I32", 32),
        typed("F64", 64),
    ],
    "missing_pair": [
        lambda tensors: tensors.pop(f"{Q0}.lora_A.weight"),
        lambda tensors: tensors.pop(f"{Q0}.lora_B.weight"),
        lambda tensors: tensors.clear(),
        renamed("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"),
    ],
    "needs_conversion": [
        renamed(f"{Q0}.{name}")
        for name in ("lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_E", "ranknum", "lora_A", "lora_B")
    ],
    "invalid_tensor_name": [
        renamed(name)
        for name in (
            "",
            "weights",
            f"{Q0}.lora_C.weight",
            f"{Q0}.lora_A.default.weight",
            f"{Q0}.lora_A.weight ",
            f"{Q0}.lora_A.weight\n",
            f"{Q0}.lora_embedding_A",
            "model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.../../x.lora_A.weight",
            "base_model.model..lora_A.weight",
            "base_model.model.\uff51_proj.lora_A.weight",
        )
    ],
}


@pytest.mark.parametrize(
    ("code", "change"),
    [
        pytest.param(code, change, id=f"{code}-{number}")
        for code, changes in BAD_TENSORS.items()
        for number, change in enumerate(changes)
    ],
)
def test_tensors_that_do_not_fit_the_base_are_refused(code: str, change: Change) -> None:
    tensors = adapter_tensors(BASE)
    change(tensors)
    assert refusal_of(weights=safetensors_bytes(tensors)).code == code


def test_a_gain_that_is_too_large_is_told_by_module_value_and_bound() -> None:
    tensors = adapter_tensors(BASE)
    filled(1, 20)(tensors)  # 2 · 16 · 320
    assert refusal_of(weights=safetensors_bytes(tensors)).message == (
        "'model.layers.0.self_attn.q_proj' multiplies by up to scale · |A| · |B| = 1.02e+04; at most 10000 is allowed."
    )


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_gain_a_hundred_times_a_trained_adapters_passes(dtype: str) -> None:
    with judged(weights=safetensors_bytes(adapter_tensors(BASE, dtype=dtype, strength=20))):
        pass


@pytest.mark.parametrize(
    "other",
    [make_base(layers=5), make_base(layers=1, hidden=16), make_base(hidden=64)],
    ids=["more layers", "smaller", "wider"],
)
def test_an_adapter_for_another_base_is_refused(other: Base) -> None:
    refused = refusal_of(weights=safetensors_bytes(adapter_tensors(other)))
    assert refused.code in {"unknown_module", "shape_mismatch"}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            make_base(layers=5),
            "4 of the adapter's 10 modules fit the base 'tiny' (it has modules in 5 layers, the base",
        ),
        (
            make_base(hidden=64),
            "None of the adapter's 4 modules fits the base 'tiny': it looks trained on another base",
        ),
    ],
    ids=["more layers", "wider"],
)
def test_how_much_of_another_bases_adapter_would_fit_is_said_first(other: Base, words: str) -> None:
    refused = refusal_of(weights=safetensors_bytes(adapter_tensors(other)))
    assert refused.problems[0].message.startswith(words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shaped("A", 32, 8), "is [32, 8] where rank 8 and the base want [8, 32]: it is transposed"),
        (shaped("A", 256), "is [256] where rank 8 and the base want [8, 32]: it has 1 dimensions"),
        (shaped("A", 1, 8, 32), "is [1, 8, 32] where rank 8 and the base want [8, 32]: it has 3 dimensions"),
        (shaped("B", 0, 8), "is [0, 8] where rank 8 and the base want [32, 8]: it is empty"),
        (shaped("B", 1, 1), "is [1, 1] where rank 8 and the base want [32, 8]: it is a single number"),
        (shaped("B", 32, 4), "is [32, 4] where rank 8 and the base want [32, 8]: its rank is 4, and r says 8"),
    ],
    ids=["transposed", "1-D", "3-D", "empty", "1x1", "rank"],
)
def test_a_wrong_shape_is_told_with_the_right_one_and_with_what_is_wrong(change: Change, words: str) -> None:
    tensors = adapter_tensors(BASE)
    change(tensors)
    [problem] = refusal_of(weights=safetensors_bytes(tensors)).problems
    assert words in problem.message
    assert problem.message.startswith(f"'{Q0}.lora_")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{Q0}.lora_A.default.weight", "save_pretrained"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embeddings are not adapted"),
        ("base_model.model.lm_head.modules_to_save.weight", "modules_to_save"),
        (f"{Q0}.base_layer.bias", "biases"),
        (f"{Q0}.lora_magnitude_vector", "`lorikeet train convert FOLDER --to lora --out PLAIN`"),
    ],
)
def test_a_misnamed_tensor_is_told_with_what_it_probably_is(name: str, words: str) -> None:
    tensors = adapter_tensors(BASE) | {name: Tensor.of(np.ones((8, 32)))}
    [problem] = refusal_of(weights=safetensors_bytes(tensors)).problems
    assert repr(name) in problem.message
    assert words in problem.message


def test_tensors_beyond_the_target_modules_are_refused_as_peft_would_not_load_them() -> None:
    raw = json.dumps(adapter_config(modules=["v_proj"])).encode()
    assert refusal_of(raw).code == "unknown_module"


def test_a_refusal_names_ten_faults_and_counts_the_others() -> None:
    refused = refusal_of(weights=safetensors_bytes(adapter_tensors(make_base(layers=20))))
    assert refused.code == "unknown_module"
    assert "'model.layers.10.self_attn.q_proj'" in refused.message
    assert refused.message.count("has no linear layer") == 10
    assert "(and 26 more)" in refused.message


def header_with(**changes: Any) -> bytes:
    """A weights file whose header says something else of lora_A of Q0. None: leave it out."""
    tensors = adapter_tensors(BASE)
    name = f"{Q0}.lora_A.weight"
    right = {"dtype": "F32", "shape": [8, 32], "data_offsets": [0, 1024]}
    described = {key: value for key, value in {**right, **changes}.items() if value is not None}
    return safetensors_bytes(tensors, header={name: described})


def raw_header(header: bytes, content: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + content


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"\0",
        bytes(8),
        (2**63).to_bytes(8, "little") + b"{}",
        (2**64 - 1).to_bytes(8, "little") + b"{}",
        raw_header(b"{}" + b" " * (4 << 20)),
        raw_header(b"[]"),
        raw_header(b" {}"),
        raw_header(b"not json"),
        raw_header(b'{"__metadata__":{"a":1}}'),
        raw_header(b'{"a":1}'),
        raw_header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', bytes(4)),
        raw_header(b'{"a":' * 100_000),
        GOOD[:-1],
        GOOD + b"\0",
        GOOD + b"PK\x05\x06" + bytes(18),
        header_with(shape=[8, 33]),
        header_with(shape=[-8, -32]),
        header_with(shape=[8.0, 32]),
        header_with(shape=[True, 256]),
        header_with(shape="8,32"),
        header_with(shape=[2**60, 2**60]),
        header_with(shape=[1] * 100_000),
        header_with(dtype="F33"),
        header_with(dtype=["F32"]),
        header_with(dtype=None),
        header_with(data_offsets=[1024, 0]),
        header_with(data_offsets=[4, 1028]),
        header_with(data_offsets=[1024, 2048]),
        header_with(data_offsets=[0, 2**70]),
        header_with(data_offsets=[0]),
        header_with(data_offsets=None),
        header_with(extra=1),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n",
        b"<!DOCTYPE html><html>Not found</html>",
    ],
    ids=map(str, range(36)),
)
def test_a_header_that_does_not_describe_its_file_is_refused(weights: bytes) -> None:
    assert refusal_of(weights=weights).code == "safetensors_invalid"


@pytest.mark.parametrize(
    "weights",
    [b"PK\x03\x04" + bytes(60), b"\x80\x04\x95" + b"x" * 60, b"GGUF" + b"\3" * 60],
    ids=["zip", "pickle", "gguf"],
)
def test_another_format_under_the_right_name_is_refused_by_its_own_code(weights: bytes) -> None:
    assert refusal_of(weights=weights).code == "unsupported_format"


def test_a_git_lfs_pointer_is_refused_with_what_to_do() -> None:
    assert "git lfs pull" in refusal_of(weights=b"version https://git-lfs.github.com/spec/v1\n" * 2).message


def test_a_file_cut_short_anywhere_is_refused() -> None:
    for length in range(0, len(GOOD), 499):
        assert refusal_of(weights=GOOD[:length]).code == "safetensors_invalid", length
