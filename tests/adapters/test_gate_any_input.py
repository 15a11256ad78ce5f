"""Generated uploads: whatever comes in is admitted rightly or refused by the gate, and nothing else happens."""

from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import RefusedError
from tests.adapters.judging import GOOD, assert_judged, assert_members_judged, judged, read_safetensors
from tests.adapters.strategies import Members, configs, hostile_members, tensors, weights
from tests.builders import Tensors, safetensors_bytes


@settings(max_examples=120)
@given(configs())
def test_any_config_is_admitted_or_refused_with_a_code(config: bytes) -> None:
    assert_judged(config=config)


@settings(max_examples=120)
@given(weights())
def test_any_weights_are_admitted_or_refused_with_a_code(content: bytes) -> None:
    assert_judged(weights=content)


@settings(max_examples=100)
@given(configs(), weights())
def test_any_two_files_together_are_admitted_or_refused_with_a_code(config: bytes, content: bytes) -> None:
    assert_judged(config=config, weights=content)


@settings(max_examples=100)
@given(hostile_members())
def test_any_files_are_admitted_or_refused_with_a_code(members: Members) -> None:
    assert_members_judged(members)


@settings(max_examples=100)
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes_are_refused_with_a_code(config: bytes, content: bytes) -> None:
    assert_judged(config=config, weights=content)


@settings(max_examples=100)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_a_changed_byte_is_admitted_or_refused_and_never_mistaken_for_the_original(position: int, byte: int) -> None:
    changed = bytearray(GOOD)
    changed[position] = byte
    assert_judged(weights=bytes(changed))


@settings(max_examples=100)
@given(tensors())
def test_what_passes_has_the_uploads_own_tensors_and_no_others(made: Tensors) -> None:
    try:
        with judged(weights=safetensors_bytes(made)) as admitted:
            assert read_safetensors(admitted.folder / "adapter_model.safetensors") == made
    except RefusedError:
        pass
