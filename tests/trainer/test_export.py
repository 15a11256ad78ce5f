"""Models exported by the command, and read back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, TokenType, dequantize
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

from adapters import Caller, Kind, Registry, folder_members
from tests.quantising import FP8, W4A16, W8A8, quantise_folder
from tests.tiny_model import CHAT_TEMPLATE, VOCABULARY_SIZE
from tests.trainer.conftest import Command
from tests.trainer.peft_adapters import TOKENS, base_model, logits_of, make_peft_adapter
from trainer.artifacts.gguf_file import write_gguf
from trainer.artifacts.gguf_tokenizer import read_vocabulary
from trainer.artifacts.modelfile import modelfile
from trainer.artifacts.shards import Slot
from trainer.checkpoint import module_table
from trainer.errors import ArtifactError

OPERATOR = Caller.operator()
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY_SIZE,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
}
MakeModel = Callable[..., Path]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "exported"


@pytest.fixture
def make_model(tiny: Path, tmp_path: Path) -> MakeModel:
    """A random model of another architecture, with tiny's tokenizer."""

    def made(config: Any) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data.uniform_(0.5, 1.5)  # norms and biases that nobody mistakes for ones and zeros
        model.save_pretrained(folder)
        return folder

    return made


@pytest.mark.parametrize(("type_name", "bound"), [("f32", 1e-5), ("bf16", 2e-2), ("q4_1", 0.6)])
def test_a_gguf_read_back_answers_as_the_model(
    lorikeet: Command, tiny: Path, out: Path, type_name: str, bound: float
) -> None:
    shown = lorikeet("train", "export", tiny, "--to", "gguf", "--type", type_name, "--out", out, "--json")
    assert shown.code == 0, shown.err
    assert shown.json["read_back"]["agreement"]["relative"] < bound
    assert shown.json["read_back"]["is_tokenized_alike"]
    assert {file.name for file in out.iterdir()} == {f"model-{type_name}.gguf", "Modelfile", "README.md"}
    model = AutoModelForCausalLM.from_pretrained(out, gguf_file=f"model-{type_name}.gguf", dtype=torch.float32)
    with torch.no_grad():
        off = (model(input_ids=TOKENS).logits - logits_of(tiny, None)).norm() / logits_of(tiny, None).norm()
    assert float(off) < bound


def test_it_holds_the_chat_template_and_the_stop_tokens(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(tiny, path, type_name="q8_0", label="acme/support@1")
    stated = {name: field.contents() for name, field in GGUFReader(path).fields.items()}
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert stated["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert stated["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert (stated["tokenizer.ggml.model"], stated["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert stated["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(VOCABULARY_SIZE))
    assert stated["tokenizer.ggml.token_type"][tokenizer.eos_token_id] == TokenType.CONTROL
    assert stated["tokenizer.ggml.add_bos_token"] is False
    assert (stated["general.architecture"], stated["general.name"]) == ("llama", "acme/support@1")
    assert (stated["llama.attention.key_length"], stated["llama.rope.freq_base"]) == (32, 10000)


@pytest.mark.parametrize("kind", [Qwen2Config, Qwen3Config])
@pytest.mark.parametrize("tied", [False, True])
def test_other_architectures_come_back_whole(
    lorikeet: Command, make_model: MakeModel, out: Path, kind: type[Any], *, tied: bool
) -> None:
    extra = {"head_dim": 16} if kind is Qwen3Config else {}
    folder = make_model(kind(**SIZES, **extra, tie_word_embeddings=tied, rope_parameters={"rope_theta": 5e5}))
    shown = lorikeet("train", "export", folder, "--to", "gguf", "--type", "f16", "--out", out, "--json")
    assert shown.code == 0, shown.err
    assert shown.json["read_back"]["agreement"]["relative"] < 1e-2
    names = {tensor.name for tensor in GGUFReader(out / "model-f16.gguf").tensors}
    assert ("output.weight" in names) is not tied
    assert ("blk.0.attn_q.bias" in names) is (kind is Qwen2Config)


def test_llama_3s_rope_is_written_as_factors(make_model: MakeModel, tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 256
    folder = make_model(LlamaConfig(**SIZES, head_dim=16, rope_parameters=rope))
    write_gguf(folder, tmp_path / "model.gguf", type_name="f32", label="x")
    (factors,) = [one for one in GGUFReader(tmp_path / "model.gguf").tensors if one.name == "rope_freqs.weight"]
    model = base_model(folder)
    plain = 1 / 5e5 ** (np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / factors.data, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-5)
    assert set(np.round(factors.data[[0, -1]], 4)) == {1.0, 8.0}


def test_rows_that_are_no_multiple_of_a_block_are_not_cut(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model(LlamaConfig(**SIZES | {"hidden_size": 80, "head_dim": 16}))
    types = write_gguf(folder, tmp_path / "model.gguf", type_name="q4_0", label="x")
    assert types.keys() == {"F16", "F32", "Q4_0"}  # o_proj and down_proj have rows of 64 and 128
    for tensor in GGUFReader(tmp_path / "model.gguf").tensors:
        assert np.isfinite(dequantize(tensor.data, tensor.tensor_type)).all()


@pytest.mark.parametrize("scheme", [FP8, W8A8, W4A16])
def test_a_folder_in_fewer_bits_is_copied_byte_for_byte(
    lorikeet: Command, tiny: Path, tmp_path: Path, out: Path, scheme: str
) -> None:
    weights = load_file(tiny / "model.safetensors")
    small = quantise_folder(tiny, tmp_path / "small", weights, module_table(tiny), scheme, 32)
    assert lorikeet("train", "export", small, "--to", "folder", "--out", out).code == 0
    for file in small.glob("*.safetensors"):
        before, after = (read_entries_of(folder / file.name) for folder in (small, out))
        assert before == after


def test_a_tensor_of_no_known_dtype_is_said_in_a_line() -> None:
    assert Slot("w", "F8_E4M3", (3, 4)).size_bytes == 12
    with pytest.raises(ArtifactError, match="w: is F4, which can't be copied"):
        _ = Slot("w", "F4", (3, 4)).size_bytes


def test_a_template_that_refuses_system_messages_is_exported(
    lorikeet: Command, tiny: Path, tmp_path: Path, out: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% endfor %}" + CHAT_TEMPLATE
    )
    shown = lorikeet("train", "export", folder, "--to", "gguf", "--type", "f32", "--out", out)
    assert shown.code == 0, shown.err
    assert "TEMPLATE" not in (out / "Modelfile").read_text()
    assert "tokens      the prompts are split alike" in shown.out


def test_a_models_token_is_never_a_directive(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    wanted = modelfile(folder, "model.gguf")
    assert 'PARAMETER stop "<|im_end|>"' in wanted
    for bad in ("<|im_end|>\nFROM /etc/passwd\n#", '<|im_end|>"', "<|im_end|>\\"):
        for path in folder.glob("*.json"):
            stated = (tiny / path.name).read_text()
            path.write_text(stated.replace("<|im_end|>", json.dumps(bad)[1:-1]))
        lines = modelfile(folder, "model.gguf").splitlines()
        assert [line for line in lines if line.startswith(("FROM", "PARAMETER"))] == ["FROM ./model.gguf"]


def test_an_adapter_is_merged_first(
    lorikeet: Command, registry: Registry, tiny: Path, tmp_path: Path, out: Path
) -> None:
    adapter = make_peft_adapter(tiny, tmp_path / "adapter", r=4)
    registry.versions.publish(OPERATOR, "acme", "support", folder_members(adapter), base="tiny")
    shown = lorikeet("train", "export", "acme/support@1", "--to", "gguf", "--type", "f32", "--out", out, "--json")
    assert shown.code == 0, shown.err
    assert "merged into tiny first" in shown.err
    assert shown.json["merge"]["source"] == "acme/support@1"
    model = AutoModelForCausalLM.from_pretrained(out, gguf_file="model-f32.gguf", dtype=torch.float32)
    with torch.no_grad():
        found = model(input_ids=TOKENS).logits
    wanted, plain = logits_of(tiny, adapter), logits_of(tiny, None)
    assert float((found - wanted).norm() / (wanted - plain).norm()) < 1e-3
    assert not list(tmp_path.glob(".staging-*"))


def test_a_plain_folder_is_what_transformers_and_the_gate_take(
    lorikeet: Command, registry: Registry, tiny: Path, out: Path
) -> None:
    registry.versions.publish(OPERATOR, "acme", "model", folder_members(tiny), base="tiny", kind=Kind.FULL)
    shown = lorikeet("train", "export", "acme/model@1", "--to", "folder", "--out", out, "--json")
    assert (shown.code, shown.json["merge"], shown.json["types"]) == (0, None, {"F32": 21}), shown.err
    assert "manifest.json" not in {file.name for file in out.iterdir()}
    assert torch.equal(logits_of(out, None), logits_of(tiny, None))
    again = registry.versions.check(OPERATOR, folder_members(out), base="tiny", kind=Kind.FULL)
    assert again.digest == registry.versions.get(OPERATOR, "acme", "model", 1).manifest.digest


def test_ollamas_file_says_where_an_answer_stops(lorikeet: Command, tiny: Path, tmp_path: Path, out: Path) -> None:
    assert lorikeet("train", "export", tiny, "--to", "gguf", "--out", out).code == 0
    text = (out / "Modelfile").read_text()
    assert text.startswith("FROM ./model-q8_0.gguf\nTEMPLATE ")
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "SYSTEM" not in text
    other = shutil.copytree(tiny, tmp_path / "other")
    (other / "chat_template.jinja").write_text("{% for message in messages %}[{{ message['content'] }}]{% endfor %}")
    assert lorikeet("train", "export", other, "--to", "gguf", "--out", out.with_name("plain")).code == 0
    assert "TEMPLATE" not in (out.with_name("plain") / "Modelfile").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "yarn"),
    ],
)
def test_a_model_that_is_not_known_is_refused_by_name(
    lorikeet: Command, tiny: Path, tmp_path: Path, out: Path, changes: dict[str, Any], said: str
) -> None:
    strange = shutil.copytree(tiny, tmp_path / "strange")
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps(config | changes))
    shown = lorikeet("train", "export", strange, "--to", "gguf", "--out", out)
    assert (shown.code, said in shown.err, out.exists(), "Traceback" in shown.err) == (2, True, False, False), shown.err
    assert not list(tmp_path.glob(".staging-*"))


SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


@pytest.mark.parametrize(
    ("steps", "ignores_merges", "name"),
    [
        ([{"type": "Digits", "individual_digits": True}, BYTES | {"use_regex": True}], False, "smollm"),
        ([{"type": "Split", "pattern": {"Regex": SPLIT}}, BYTES], True, "llama-bpe"),
        ([{"type": "Split", "pattern": {"Regex": SPLIT.replace("{1,3}", "")}}, BYTES], False, "qwen2"),
        ([{"type": "Split", "pattern": {"Regex": SPLIT}}, BYTES], False, None),
        ([{"type": "Split", "pattern": {"Regex": "."}}, BYTES], False, None),
        ([{"type": "Metaspace"}], False, None),
    ],
)
def test_how_text_is_split_is_named_by_what_is_done(
    tiny: Path, tmp_path: Path, steps: list[dict[str, Any]], *, ignores_merges: bool, name: str | None
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    stated = json.loads((folder / "tokenizer.json").read_text())
    stated["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    stated["model"]["ignore_merges"] = ignores_merges
    (folder / "tokenizer.json").write_text(json.dumps(stated))
    if name is None:
        with pytest.raises(ArtifactError, match="splits text"):
            read_vocabulary(folder, VOCABULARY_SIZE)
    else:
        assert read_vocabulary(folder, VOCABULARY_SIZE).split == name


def test_a_vocabulary_is_filled_up_to_the_embedding(tiny: Path) -> None:
    vocabulary = read_vocabulary(tiny, VOCABULARY_SIZE + 2)
    assert vocabulary.tokens[-2:] == (f"[PAD{VOCABULARY_SIZE}]", f"[PAD{VOCABULARY_SIZE + 1}]")
    assert vocabulary.kinds[-1] == TokenType.UNUSED
    with pytest.raises(ArtifactError, match="embedding"):
        read_vocabulary(tiny, VOCABULARY_SIZE - 1)


def read_entries_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Each tensor's dtype, shape and bytes."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    stated = json.loads(raw[8:start])
    stated.pop("__metadata__", None)
    return {
        name: (one["dtype"], tuple(one["shape"]), raw[start + one["data_offsets"][0] : start + one["data_offsets"][1]])
        for name, one in stated.items()
    }
