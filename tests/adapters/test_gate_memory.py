"""Whatever an upload claims to be, judging it takes a few megabytes."""

import io
import json
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters import Limits, TooLargeError, folder_members
from adapters.gate import admit
from tests.adapters.judging import BASE, refusal_of
from tests.builders import adapter_config, adapter_tensors, make_base, safetensors_bytes, write_adapter

BOMBS: dict[str, Callable[[], bytes]] = {
    "a header that is longer than any": lambda: (1 << 30).to_bytes(8, "little") + b"{" + bytes(1 << 20),
    "a header of braces": lambda: header_of(b'{"a":[' + b"{}," * 1_300_000 + b"{}]}"),
    "a header of brackets": lambda: header_of(b'{"a":[' + b"[]," * 1_300_000 + b"[]]}"),
    "a header of numbers": lambda: header_of(b'{"a":{"shape":[' + b"1e9," * 1_000_000 + b"1]}}"),
    "a header that is nested": lambda: header_of(b"[" * (4 << 20)),
    "a metadata of one long string": lambda: header_of(b'{"__metadata__":{"a":"' + b"x" * (3 << 20) + b'"}}'),
}


def header_of(raw: bytes) -> bytes:
    return len(raw).to_bytes(8, "little") + raw


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_no_header_takes_memory_beyond_its_own_bytes(bomb: Callable[[], bytes]) -> None:
    weights = bomb()
    assert peak_of(lambda: refusal_of(weights=weights)) < 16 << 20


def test_a_sparse_file_of_a_gigabyte_takes_a_chunk_at_a_time(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "sparse", adapter_config(), adapter_tensors(BASE))
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(1 << 30)

    def judge() -> None:
        with tempfile.TemporaryDirectory() as staged, pytest.raises(TooLargeError):
            admit(folder_members(folder), Path(staged), BASE, Limits(max_upload_bytes=1 << 26))

    assert peak_of(judge) < 4 << 20


def test_a_large_tensor_is_measured_a_chunk_at_a_time() -> None:
    wide = make_base(hidden=1 << 15)
    tensors = {
        name: tensor for name, tensor in adapter_tensors(wide).items() if "layers.0" in name and "q_proj" in name
    }
    weights = io.BytesIO(safetensors_bytes(tensors))

    def judge() -> None:
        members = [("adapter_config.json", io.BytesIO(json.dumps(adapter_config()).encode()))]
        with tempfile.TemporaryDirectory() as staged:
            admit([*members, ("adapter_model.safetensors", weights)], Path(staged), wide, Limits())

    assert len(weights.getvalue()) > 2 << 20
    assert peak_of(judge) < 8 << 20


def peak_of(run: Callable[[], object]) -> int:
    """The most bytes that Python and NumPy held at once for it."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
