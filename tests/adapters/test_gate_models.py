"""What the gate for whole models lets through, what it makes of it, and what it refuses."""

import json
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters import Kind, Limits, TooLargeError, fingerprint_base
from adapters.gate.checkpoint.canonical import write_weights
from adapters.gate.checkpoint.shards import read_shards
from adapters.gate.checkpoint.values import check_values
from adapters.refusals import Faults
from adapters.safetensors import Entry, write_header
from tests.adapters.judging_models import BASE, Documents, codes_of, judged, refusal_of
from tests.builders import (
    Tensor,
    Tensors,
    make_base_of,
    make_model_folder,
    model_documents,
    model_tensors,
    safetensors_bytes,
    write_model,
)

EMBEDDING = "model.embed_tokens.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


def test_a_manifest_says_what_a_model_is_and_what_it_was_made_from(tmp_path: Path) -> None:
    with judged(make_model_folder(tmp_path / "full", seed=1, dtype="BF16")) as admitted:
        manifest = admitted.manifest
        assert (manifest.kind, manifest.dtype, manifest.tensor_count) == (Kind.FULL, "BF16", 12)
        assert manifest.base_fingerprint == BASE.fingerprint
        assert manifest.model_fingerprint == fingerprint_base(admitted.folder).fingerprint
        assert manifest.size_bytes == sum(path.stat().st_size for path in admitted.folder.iterdir())
        assert (manifest.rank, manifest.alpha, manifest.target_modules) == (None, None, ())
        assert admitted.warnings == ()


def test_equal_models_have_one_digest_however_they_were_cut_and_written(tmp_path: Path) -> None:
    whole = make_model_folder(tmp_path / "whole", seed=1)
    cut = make_model_folder(
        tmp_path / "cut", seed=1, shards=5, config={"use_cache": False, "_name_or_path": "/home/me"}
    )
    (cut / "tokenizer.json").write_text(json.dumps(json.loads((cut / "tokenizer.json").read_bytes()), indent=7))
    with judged(whole) as one, judged(cut) as other:
        assert one.manifest.digest == other.manifest.digest


def test_a_model_that_is_its_base_passes_with_a_warning(tmp_path: Path) -> None:
    with judged(make_model_folder(tmp_path / "same", shards=2)) as admitted:
        assert admitted.warnings == ("model_equals_base",)
        assert admitted.manifest.model_fingerprint == BASE.fingerprint


def test_the_vocabulary_may_grow(tmp_path: Path) -> None:
    with judged(make_model_folder(tmp_path / "grown", vocabulary=11)) as admitted:
        identity = fingerprint_base(admitted.folder)
        assert identity.tensors[EMBEDDING] == identity.tensors["lm_head.weight"] == (11, 8)
        assert identity.config["vocab_size"] == 11


def test_a_head_may_be_tied_and_stored_all_the_same(tmp_path: Path) -> None:
    tensors = model_tensors(seed=1)
    tensors["lm_head.weight"] = tensors[EMBEDDING]
    both = write_model(tmp_path / "both", model_documents(is_tied=True), tensors)
    del tensors["lm_head.weight"]
    one = write_model(tmp_path / "one", model_documents(is_tied=True), tensors)
    with judged(both) as stored, judged(one) as tied:
        assert stored.manifest.digest == tied.manifest.digest
        assert stored.manifest.tensor_count == 11


def test_a_tied_head_that_is_another_one_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "both", model_documents(is_tied=True), model_tensors())
    assert codes_of(folder) == {"tensor_mismatch"}


def test_a_tied_base_may_be_untied(tmp_path: Path) -> None:
    base = make_base_of(make_model_folder(tmp_path / "base", is_tied=True))
    with judged(make_model_folder(tmp_path / "full"), base) as admitted:
        assert admitted.manifest.tensor_count == 12


def test_the_canonical_config_is_the_bases_with_what_an_upload_may_change(tmp_path: Path) -> None:
    change = {"eos_token_id": [1, 2], "torch_dtype": "bfloat16", "transformers_version": "9", "use_cache": False}
    with judged(make_model_folder(tmp_path / "full", config=change)) as admitted:
        written = json.loads((admitted.folder / "config.json").read_bytes())
        expected = {**model_documents()["config.json"], "eos_token_id": [1, 2]}
        assert written == expected


def test_what_two_libraries_write_differently_is_no_difference(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "full")
    config = json.loads((folder / "config.json").read_bytes())
    del config["rope_parameters"]
    del config["dtype"]
    config |= {"rope_theta": 10000, "rope_scaling": None, "torch_dtype": "float32", "head_dim": 4, "mlp_bias": False}
    (folder / "config.json").write_text(json.dumps(config))
    with judged(folder) as admitted:
        assert json.loads((admitted.folder / "config.json").read_bytes()) == model_documents()["config.json"]


def test_an_upload_without_a_template_gets_the_bases(tmp_path: Path) -> None:
    with judged(make_model_folder(tmp_path / "full", template=None)) as admitted:
        assert (admitted.folder / "chat_template.jinja").read_text() == "{{ messages }}"


def test_what_else_lies_in_a_checkpoint_is_left_out(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "full")
    for name in ("README.md", "LICENSE", ".gitattributes", "merges.txt", "tokenizer.model", "special_tokens_map.json"):
        (folder / name).write_text("anything")
    with judged(folder) as admitted:
        assert sorted(path.name for path in admitted.folder.iterdir()) == [
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ]


def test_large_weights_are_cut_by_one_rule(tmp_path: Path) -> None:
    (tmp_path / "anew").mkdir()
    stored = read_shards(make_model_folder(tmp_path / "full", shards=3), faults=Faults())
    assert stored is not None
    write_weights(tmp_path / "anew", stored, shard_bytes=600)
    files = sorted(path.name for path in (tmp_path / "anew").glob("*.safetensors"))
    assert files == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
    again = read_shards(tmp_path / "anew", faults=(faults := Faults()))
    assert not faults
    assert [tensor.name for tensor in again or ()] == sorted(model_tensors())
    assert [b"".join(tensor.read()) for tensor in again or ()] == [b"".join(tensor.read()) for tensor in stored]


def test_memory_stays_at_one_chunk(tmp_path: Path) -> None:
    entry = Entry("w", "BF16", (1 << 25,), 0, 1 << 26)
    source = tmp_path / "model.safetensors"
    with source.open("wb") as file:
        write_header(file, [entry])
        file.write(b"\1\1")
        os.truncate(source, file.tell() - 2 + entry.size_bytes)
    tracemalloc.start()
    try:
        tensors = read_shards(tmp_path, faults=Faults())
        assert tensors is not None
        check_values(tensors, faults=(faults := Faults()))
        (tmp_path / "anew").mkdir()
        write_weights(tmp_path / "anew", tensors)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not faults
    assert peak_bytes < 8 << 20


# --- what is refused --------------------------------------------------------------------------------------------------


def _write(name: str, content: str | bytes = b"x") -> Callable[[Path], object]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw)


def _renamed(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


@pytest.mark.parametrize(
    ("code", "spoil"),
    [
        ("missing_file", lambda folder: (folder / "config.json").unlink()),
        ("missing_file", lambda folder: (folder / "tokenizer.json").unlink()),
        ("missing_file", lambda folder: (folder / "tokenizer_config.json").unlink()),
        ("missing_file", lambda folder: (folder / "model-00002-of-00003.safetensors").unlink()),
        ("missing_file", lambda folder: (folder / "model.safetensors.index.json").unlink()),
        ("missing_file", _renamed("model-00003-of-00003.safetensors", "model-00004-of-00003.safetensors")),
        ("index_mismatch", _renamed("model-00003-of-00003.safetensors", "model-00003-of-00004.safetensors")),
        ("index_mismatch", _renamed("model-00003-of-00003.safetensors", "model.safetensors")),
        ("index_mismatch", _write("model.safetensors.index.json", "[]")),
        ("index_mismatch", _write("model.safetensors.index.json", "{}")),
        ("index_mismatch", _write("model.safetensors.index.json", '{"weight_map": {"a": "../../etc/passwd"}}')),
        ("unexpected_file", _write("modeling_llama.py")),
        ("unexpected_file", _write("tokenization.py")),
        ("unexpected_file", _write("adapter_config.json", "{}")),
        ("unsupported_format", _write("pytorch_model.bin", b"\x80")),
        ("unsupported_format", _write("training_args.bin", b"\x80")),
        ("unsupported_format", _write("model.gguf", b"GGUF")),
        ("unsupported_format", _write("model-00001-of-00003.safetensors", b"PK\x03\x04")),
        ("safetensors_invalid", _write("model-00001-of-00003.safetensors", b"")),
        ("safetensors_invalid", _write("model-00001-of-00003.safetensors", b"version https://git-lfs.github.com")),
        ("illegal_member_type", lambda folder: (folder / "original").mkdir()),
        ("illegal_member_path", _write("a b")),
        ("file_too_large", _write("config.json", b" " * (1 << 20))),
        ("invalid_config", _write("config.json", "[]")),
        ("invalid_config", _write("config.json", '{"a": 1, "a": 2}')),
        ("invalid_config", _write("generation_config.json", '{"eos_token_id": 8}')),
        ("tokenizer_invalid", _write("tokenizer.json", "[" * 100_000)),
        ("tokenizer_invalid", _write("tokenizer.json", "[" + "{}," * (1 << 23) + "{}]")),
        ("chat_template_mismatch", _write("chat_template.jinja", "{{ cycler.__init__.__globals__ }}")),
        ("chat_template_mismatch", _write("chat_template.jinja", "{{ messages }}\n")),
    ],
    ids=map(str, range(30)),
)
def test_a_file_that_has_no_place_is_refused(tmp_path: Path, code: str, spoil: Callable[[Path], object]) -> None:
    folder = make_model_folder(tmp_path / "bad", shards=3)
    spoil(folder)
    assert code in codes_of(folder)


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("unsupported_config", {"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}),
        ("unsupported_config", {"text_config": {"auto_map": {"AutoConfig": "evil--repo"}}}),
        ("unsupported_config", {"trust_remote_code": True}),
        ("unsupported_config", {"quantization_config": {"quant_method": "gptq"}}),
        ("config_mismatch", {"model_type": "mistral"}),
        ("config_mismatch", {"architectures": ["EvilForCausalLM"]}),
        ("config_mismatch", {"num_hidden_layers": 2}),
        ("config_mismatch", {"num_attention_heads": 4}),
        ("config_mismatch", {"head_dim": 8}),
        ("config_mismatch", {"max_position_embeddings": 1 << 40}),
        ("config_mismatch", {"rope_parameters": {"rope_theta": 1.0, "rope_type": "default"}}),
        ("config_mismatch", {"rope_scaling": {"type": "linear", "factor": 8.0}}),
        ("config_mismatch", {"hidden_act": None}),
        ("config_mismatch", {"layer_types": ["sliding_attention"]}),
        ("config_mismatch", {"unheard_of": 1}),
        ("invalid_config", {"vocab_size": "8"}),
        ("invalid_config", {"vocab_size": True}),
        ("invalid_config", {"vocab_size": 1 << 60}),
        ("invalid_config", {"eos_token_id": 8}),
        ("invalid_config", {"eos_token_id": []}),
        ("invalid_config", {"pad_token_id": -1}),
        ("invalid_config", {"tie_word_embeddings": "yes"}),
        ("tensor_mismatch", {"vocab_size": 9}),
        ("tensor_mismatch", {"tie_word_embeddings": True}),
        ("tokenizer_invalid", {"vocab_size": 4}),
    ],
    ids=str,
)
def test_a_config_that_is_not_the_bases_is_refused(tmp_path: Path, code: str, change: dict[str, Any]) -> None:
    assert code in codes_of(make_model_folder(tmp_path / "bad", config=change))


def test_each_difference_of_a_config_is_named(tmp_path: Path) -> None:
    refused = refusal_of(make_model_folder(tmp_path / "bad", config={"hidden_size": 9, "rms_norm_eps": 1.0}))
    assert [problem.message for problem in refused.problems if problem.code == "config_mismatch"] == [
        "In config.json, 'hidden_size' is '9' where the base has '8'.",
        "In config.json, 'rms_norm_eps' is '1.0' where the base has '1e-06'.",
    ]


def _spoilt(tensors: Tensors, name: str, value: float, dtype: str = "F32") -> Tensors:
    values = np.ones(tensors[name].shape)
    values.flat[-1] = value
    with np.errstate(over="ignore"):
        return {**tensors, name: Tensor.of(values, dtype)}


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("tensor_mismatch", lambda tensors: {name: tensors[name] for name in tensors if name != QUERY}),
        ("tensor_mismatch", lambda tensors: {**tensors, "extra": tensors[QUERY]}),
        ("tensor_mismatch", lambda tensors: {**tensors, QUERY: Tensor.of(np.ones((8, 7)))}),
        ("tensor_mismatch", lambda tensors: {**tensors, QUERY: Tensor.of(np.ones(64))}),
        ("tensor_mismatch", lambda tensors: {**tensors, "lm_head.weight": Tensor.of(np.ones((9, 8)))}),
        ("tensor_mismatch", lambda _: {}),
        ("unsupported_dtype", lambda tensors: {**tensors, QUERY: Tensor("I8", (8, 8), bytes(64))}),
        ("unsupported_dtype", lambda tensors: {**tensors, QUERY: Tensor("F8_E4M3", (8, 8), bytes(64))}),
        ("unsupported_dtype", lambda tensors: {**tensors, QUERY: Tensor("F64", (8, 8), bytes(512))}),
        ("not_finite", lambda tensors: _spoilt(tensors, QUERY, np.nan)),
        ("not_finite", lambda tensors: _spoilt(tensors, QUERY, -np.inf, "F16")),
        ("not_finite", lambda tensors: _spoilt(tensors, QUERY, np.inf, "BF16")),
        ("not_finite", lambda tensors: _spoilt(tensors, QUERY, 3.4e38)),
        ("all_zero", lambda tensors: {n: Tensor.of(np.full(t.shape, -0.0)) for n, t in tensors.items()}),
    ],
    ids=map(str, range(14)),
)
def test_weights_that_are_not_the_bases_kind_are_refused(
    tmp_path: Path, code: str, change: Callable[[Tensors], Tensors]
) -> None:
    folder = write_model(tmp_path / "bad", model_documents(), change(model_tensors()))
    assert code in codes_of(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "bad", shards=2)
    (folder / "model-00002-of-00002.safetensors").write_bytes(safetensors_bytes(model_tensors()))
    assert codes_of(folder) == {"index_mismatch"}


def _tokenizer(**change: Any) -> Callable[[Documents], object]:
    return lambda documents: documents["tokenizer.json"].update(change)


def _tokenizer_model(**change: Any) -> Callable[[Documents], object]:
    return lambda documents: documents["tokenizer.json"]["model"].update(change)


def _tokenizer_config(**change: Any) -> Callable[[Documents], object]:
    return lambda documents: documents["tokenizer_config.json"].update(change)


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


@pytest.mark.parametrize(
    "change",
    [
        _tokenizer(version="2.0"),
        _tokenizer(auto_map={}),
        _tokenizer(model=None),
        _tokenizer(normalizer=REPLACE),
        _tokenizer(normalizer={"type": "Sequence", "normalizers": [REPLACE] * 30}),
        _tokenizer(normalizer={"type": "Sequence", "normalizers": [{"type": "NFKD"}] * 65}),
        _tokenizer(normalizer={"normalizers": []}),
        _tokenizer(normalizer={"type": "ByteLevel", "junk": [[]] * 5000}),
        _tokenizer(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated"}),
        _tokenizer(post_processor={"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 8]}),
        _tokenizer(added_tokens=[{"id": 8, "content": "x", **TOKEN}]),
        _tokenizer(added_tokens=[{"id": -1, "content": "x", **TOKEN}]),
        _tokenizer(added_tokens=[{"id": 1, "content": "", **TOKEN}]),
        _tokenizer(added_tokens=[{"id": 1, "content": "x"}]),
        _tokenizer(added_tokens={}),
        _tokenizer_model(type="Evil"),
        _tokenizer_model(vocab={"a": 8}),
        _tokenizer_model(vocab={"a": 1.5}),
        _tokenizer_model(vocab={"a": -1}),
        _tokenizer_model(vocab=[["a", 0.0]]),
        _tokenizer_model(vocab={"\ud800": 1}),
        _tokenizer_model(merges=["a b c"]),
        _tokenizer_model(merges={"a": "b"}),
        _tokenizer_model(dropout=0.5),
        _tokenizer_model(unk_token={"a": "b"}),
        _tokenizer_config(auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}),
        _tokenizer_config(tokenizer_class="../evil"),
        _tokenizer_config(eos_token="<|beyond|>"),
        _tokenizer_config(extra_special_tokens=["<|beyond|>"]),
        _tokenizer_config(extra_special_tokens={"image": {"content": "<|beyond|>"}}),
        _tokenizer_config(added_tokens_decoder={"7": {"content": "<|beyond|>"}}),
        _tokenizer_config(added_tokens_decoder={"7": {"content": "</s>"}}),
        _tokenizer_config(model_max_length="long"),
        _tokenizer_config(padding_side="up"),
    ],
    ids=map(str, range(34)),
)
def test_a_tokenizer_that_could_harm_is_refused(tmp_path: Path, change: Callable[[Documents], object]) -> None:
    documents = model_documents()
    change(documents)
    assert codes_of(write_model(tmp_path / "bad", documents, model_tensors())) == {"tokenizer_invalid"}


@pytest.mark.parametrize(
    "template",
    [
        "{{ other }}",
        "",
        1,
        {"default": "{{ messages }}"},
        [{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": "{{ other }}"}],
    ],
    ids=str,
)
def test_a_template_of_its_own_is_refused_in_the_tokenizers_config_too(tmp_path: Path, template: Any) -> None:
    documents = model_documents()
    documents["tokenizer_config.json"]["chat_template"] = template
    assert codes_of(write_model(tmp_path / "bad", documents, model_tensors())) == {"chat_template_mismatch"}


def test_a_base_without_a_template_takes_none(tmp_path: Path) -> None:
    base = make_base_of(make_model_folder(tmp_path / "base", template=None))
    assert codes_of(make_model_folder(tmp_path / "bad"), base) == {"chat_template_mismatch"}
    with judged(make_model_folder(tmp_path / "good", template=None), base) as admitted:
        assert not (admitted.folder / "chat_template.jinja").exists()


def test_one_refusal_tells_all_that_is_wrong(tmp_path: Path) -> None:
    documents = model_documents()
    documents["config.json"]["hidden_act"] = "gelu"
    documents["tokenizer.json"]["version"] = "2.0"
    tensors = _spoilt(model_tensors(), QUERY, np.nan)
    folder = write_model(tmp_path / "bad", documents, tensors, template="{{ other }}")
    (folder / "run.py").write_text("")
    assert codes_of(folder) == {
        "unexpected_file",
        "not_finite",
        "config_mismatch",
        "tokenizer_invalid",
        "chat_template_mismatch",
    }


def test_weights_above_the_cap_are_refused_before_they_are_written(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "large", shards=3)
    refused = refusal_of(folder, limits=Limits(max_model_bytes=3000))
    assert isinstance(refused, TooLargeError)
    assert refused.code == "file_too_large"


def test_a_base_of_which_too_little_is_known_is_to_be_prepared_again(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "full")
    for forgotten in (replace(BASE, tensors={}), replace(BASE, config={})):
        refused = refusal_of(folder, forgotten)
        assert refused.code == "base_incomplete"
        assert "lorikeet base" in refused.message


def test_a_quantised_base_takes_no_models(tmp_path: Path) -> None:
    base = replace(BASE, config={**BASE.config, "quantization_config": {"quant_method": "awq"}})
    assert refusal_of(make_model_folder(tmp_path / "merged"), base).code == "base_quantised"


def test_a_list_of_what_is_in_an_upload_never_names_the_disk(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "bad", config={"hidden_size": 1})
    assert "/" not in refusal_of(folder).message
