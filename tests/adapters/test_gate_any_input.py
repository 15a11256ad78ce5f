"""Generated uploads: whatever comes in is admitted rightly or refused by the gate, and nothing else happens."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.adapters.judging import BASE, GOOD, assert_judged
from tests.builders import adapter_config, adapter_tensors, safetensors_bytes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
DESCRIPTIONS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I8", "F4", "X"]) | JSON,
        "shape": st.lists(st.integers(-1, 64) | st.integers(), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 5000) | st.integers(), min_size=2, max_size=2) | JSON,
    }
)


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(sorted(adapter_config())) | st.text(max_size=8), JSON, min_size=1))
def test_any_config_is_admitted_or_refused_with_a_code(changes: dict[str, Any]) -> None:
    assert_judged(config=json.dumps({**adapter_config(), **changes}).encode())


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(sorted(adapter_tensors(BASE))) | st.text(max_size=8), DESCRIPTIONS | JSON))
def test_any_header_is_admitted_or_refused_with_a_code(header: dict[str, Any]) -> None:
    assert_judged(weights=safetensors_bytes(adapter_tensors(BASE), header=header))


@settings(max_examples=100)
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes_are_refused_with_a_code(config: bytes, weights: bytes) -> None:
    assert_judged(config=config, weights=weights)


@settings(max_examples=100)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_a_changed_byte_is_admitted_or_refused_and_never_mistaken_for_the_original(position: int, byte: int) -> None:
    changed = bytearray(GOOD)
    changed[position] = byte
    assert_judged(weights=bytes(changed))
