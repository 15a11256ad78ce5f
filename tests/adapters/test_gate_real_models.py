"""Checkpoints as transformers saves them, through the gate and back into transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

from adapters import Base, fingerprint_base
from tests.adapters.judging_models import codes_of, judged
from tests.builders import make_base_of
from tests.tiny_model import VOCABULARY_SIZE, make_tiny_checkpoint

SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(make_tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


def _model(architecture: str, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match architecture:
            case "llama":
                return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))
            case "tied llama":
                return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
            case _:
                return Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True))


def _saved(folder: Path, model: Any, tokenizer: Any, *, shard_size: str = "5GB") -> Path:
    disable_progress_bar()
    model.save_pretrained(folder, max_shard_size=shard_size)
    tokenizer.save_pretrained(folder)
    return folder


def _base(folder: Path, architecture: str, tokenizer: Any) -> Base:
    return make_base_of(_saved(folder, _model(architecture, seed=0), tokenizer))


@pytest.mark.parametrize("architecture", ["llama", "tied llama", "qwen2"])
def test_a_model_answers_as_before(tmp_path: Path, tokenizer: Any, architecture: str) -> None:
    base = _base(tmp_path / "base", architecture, tokenizer)
    tuned = _model(architecture, seed=1).eval()
    whole = _saved(tmp_path / "whole", tuned, tokenizer)
    cut = _saved(tmp_path / "cut", tuned, tokenizer, shard_size="100KB")
    assert len(list(cut.glob("*.safetensors"))) > 2
    ids = tokenizer("Where is my order?", return_tensors="pt").input_ids
    with judged(whole, base) as admitted, judged(cut, base) as other:
        assert admitted.manifest.digest == other.manifest.digest
        assert admitted.manifest.model_fingerprint == fingerprint_base(whole).fingerprint
        again = AutoModelForCausalLM.from_pretrained(admitted.folder).eval()
        with torch.inference_mode():
            assert torch.equal(again(ids).logits, tuned(ids).logits)


@pytest.mark.parametrize("text", ["Where is my order?", "<|im_start|>user\nhello<|im_end|>", "naïve ☃ 12"])
def test_a_tokenizer_says_the_same_as_before(tmp_path: Path, tokenizer: Any, text: str) -> None:
    base = _base(tmp_path / "base", "llama", tokenizer)
    folder = _saved(tmp_path / "full", _model("llama", seed=1), tokenizer)
    with judged(folder, base) as admitted:
        again = AutoTokenizer.from_pretrained(admitted.folder)
    assert isinstance(again, PreTrainedTokenizerFast)
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.decode(again(text).input_ids) == tokenizer.decode(tokenizer(text).input_ids)
    messages = [{"role": "user", "content": text}]
    assert again.apply_chat_template(messages, tokenize=False) == tokenizer.apply_chat_template(
        messages, tokenize=False
    )


def test_a_model_with_tokens_of_its_own_is_admitted(tmp_path: Path, tokenizer: Any) -> None:
    base = _base(tmp_path / "base", "tied llama", tokenizer)
    grown = AutoTokenizer.from_pretrained(base.path)
    grown.add_tokens(["<|call|>"], special_tokens=True)
    model = _model("tied llama", seed=1)
    model.resize_token_embeddings(VOCABULARY_SIZE + 8, mean_resizing=False)
    with judged(_saved(tmp_path / "full", model, grown), base) as admitted:
        again = AutoTokenizer.from_pretrained(admitted.folder)
        assert again("<|call|>").input_ids == [len(tokenizer)]
        assert AutoModelForCausalLM.from_pretrained(admitted.folder).config.vocab_size == VOCABULARY_SIZE + 8


def test_a_model_of_another_architecture_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    base = _base(tmp_path / "base", "llama", tokenizer)
    folder = _saved(tmp_path / "full", _model("qwen2", seed=1), tokenizer)
    assert {"config_mismatch", "tensor_mismatch"} <= codes_of(folder, base)
