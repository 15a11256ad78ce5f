"""Files through the gate, without a registry around it."""

import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapters import Limits, Refusal, RefusedError
from adapters.gate import Admitted, admit
from tests.builders import Tensor, Tensors, adapter_config, adapter_tensors, make_base, safetensors_bytes

BASE = make_base()
GOOD = safetensors_bytes(adapter_tensors(BASE))
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
"""The name of a module's tensors, up to `.lora_A.weight`."""


@contextmanager
def judged(config: bytes | None = None, weights: bytes = GOOD) -> Iterator[Admitted]:
    config = json.dumps(adapter_config()).encode() if config is None else config
    members = [
        ("adapter_config.json", io.BytesIO(config)),
        ("adapter_model.safetensors", io.BytesIO(weights)),
    ]
    with tempfile.TemporaryDirectory() as staged:
        yield admit(members, Path(staged), BASE, Limits())


def refusal_of(config: bytes | None = None, weights: bytes = GOOD) -> RefusedError:
    with pytest.raises(RefusedError) as caught, judged(config, weights):
        pass
    assert caught.value.code in list(Refusal)
    assert caught.value.message.isascii() or not {"–", "·"}.isdisjoint(caught.value.message)
    assert len(caught.value.message) < 20_000
    return caught.value


def assert_judged(config: bytes | None = None, weights: bytes = GOOD) -> None:
    """Whatever comes in, what passes is right, and what does not is refused by the gate and by nothing else."""
    codes = list(Refusal)
    try:
        with judged(config, weights) as admitted:
            assert set(read_safetensors(admitted.folder / "adapter_model.safetensors")) == set(adapter_tensors(BASE))
    except RefusedError as error:
        if error.code not in codes:
            raise


def read_safetensors(path: Path) -> Tensors:
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    del header["__metadata__"]
    return {
        name: Tensor(
            described["dtype"],
            tuple(described["shape"]),
            raw[start + described["data_offsets"][0] : start + described["data_offsets"][1]],
        )
        for name, described in header.items()
    }
