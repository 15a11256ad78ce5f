"""Generated models: whatever comes in is admitted rightly or refused by the gate, and nothing else happens."""

import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import Kind, Limits, Member, Refusal, RefusedError, archive_members
from adapters.gate import admit_model
from tests.adapters.judging_models import BASE, Documents, assert_judged
from tests.builders import make_model_folder, model_documents, model_tensors, safetensors_bytes

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
TENSORS = model_tensors()
TENSOR_NAMES = st.sampled_from(sorted(TENSORS)) | st.text(max_size=8)
FILES = st.sampled_from(["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
IDS = st.integers(-1, 9) | JSON


def _changes(file: str, *keys: str) -> st.SearchStrategy[dict[str, Any]]:
    """Values of any kind, for keys that the file has, that it may have, and that it has not."""
    known = st.sampled_from([*model_documents()[file], *keys])
    return st.dictionaries(known | st.text(max_size=8), IDS, min_size=1, max_size=4)


def _archive() -> bytes:
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as place, tarfile.open(fileobj=packed, mode="w") as archive:
        for path in sorted(make_model_folder(Path(place) / "upload").iterdir()):
            archive.add(path, path.name)
    return packed.getvalue()


ARCHIVE = _archive()


@settings(max_examples=100)
@given(_changes("config.json", "rope_scaling", "head_dim", "auto_map", "torch_dtype", "pad_token_id", "text_config"))
def test_any_config_is_admitted_or_refused_with_a_code(changes: dict[str, Any]) -> None:
    assert_judged(lambda documents: documents["config.json"].update(changes))


@settings(max_examples=60)
@given(_changes("generation_config.json", "top_p", "top_k", "bos_token_id", "do_sample"))
def test_any_generation_config_is_admitted_or_refused_with_a_code(changes: dict[str, Any]) -> None:
    assert_judged(lambda documents: documents["generation_config.json"].update(changes))


@settings(max_examples=100)
@given(
    st.sampled_from(["normalizer", "pre_tokenizer", "post_processor", "decoder", "model"]),
    _changes("tokenizer.json"),
    st.dictionaries(
        st.sampled_from(["type", "vocab", "merges", "unk_token", "pretokenizers", "prepend", "single"]), IDS
    ),
)
def test_any_tokenizer_is_admitted_or_refused_with_a_code(
    part: str, changes: dict[str, Any], inner: dict[str, Any]
) -> None:
    def change(documents: Documents) -> None:
        documents["tokenizer.json"][part].update(inner)
        if len(inner) != 1:
            documents["tokenizer.json"].update(changes)

    assert_judged(change)


@settings(max_examples=100)
@given(
    _changes("tokenizer_config.json", "added_tokens_decoder", "extra_special_tokens", "auto_map", "model_max_length")
)
def test_any_tokenizer_config_is_admitted_or_refused_with_a_code(changes: dict[str, Any]) -> None:
    assert_judged(lambda documents: documents["tokenizer_config.json"].update(changes))


@settings(max_examples=100)
@given(st.dictionaries(TENSOR_NAMES, DESCRIPTIONS | JSON))
def test_any_header_is_admitted_or_refused_with_a_code(header: dict[str, Any]) -> None:
    raw = safetensors_bytes(TENSORS, header=header)
    assert_judged(lambda _: None, lambda folder: (folder / "model.safetensors").write_bytes(raw))


@settings(max_examples=60)
@given(st.dictionaries(TENSOR_NAMES, FILES | JSON) | JSON)
def test_any_index_is_admitted_or_refused_with_a_code(index: Any) -> None:
    raw = json.dumps({"metadata": {}, "weight_map": index})
    assert_judged(lambda _: None, lambda folder: (folder / "model.safetensors.index.json").write_text(raw))


@settings(max_examples=100)
@given(
    st.sampled_from([*model_documents(), "model.safetensors", "model.safetensors.index.json", "chat_template.jinja"]),
    st.binary(max_size=300),
)
def test_any_bytes_are_refused_with_a_code(name: str, raw: bytes) -> None:
    assert_judged(lambda _: None, lambda folder: (folder / name).write_bytes(raw))


@settings(max_examples=100)
@given(st.text(max_size=40) | st.sampled_from(["../config.json", "a/b", "model-1-of-1.safetensors", "x.py", "CON"]))
def test_any_member_name_is_refused_or_ignored(name: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(ARCHIVE)) as archive:
        files = [(member.name, archive.extractfile(member)) for member in archive]
        members = [(known, io.BytesIO(file.read())) for known, file in files if file]
    assert_members(lambda: [*members, (name, io.BytesIO(b"anything"))])


@settings(max_examples=100)
@given(st.integers(0, len(ARCHIVE) - 1), st.integers(0, 255), st.booleans())
def test_an_archive_with_a_changed_byte_is_admitted_or_refused(position: int, byte: int, is_packed: bool) -> None:  # noqa: FBT001
    changed = bytearray(ARCHIVE)
    changed[position] = byte
    raw = gzip.compress(changed, 1) if is_packed else bytes(changed)
    assert_members(lambda: archive_members(io.BytesIO(raw)))


def assert_members(open_members: Callable[[], Iterable[Member]]) -> None:
    with tempfile.TemporaryDirectory() as staged:
        try:
            admitted = admit_model(open_members(), Path(staged), BASE, Limits(), kind=Kind.MERGED)
            assert {path.name for path in admitted.folder.iterdir()} <= {
                *model_documents(),
                "model.safetensors",
                "chat_template.jinja",
            }
        except RefusedError as error:
            if not {problem.code for problem in error.problems} <= set(Refusal):
                raise
