"""A GGUF file read back by transformers, which shares nothing with the writing of it, beside what it was made of."""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from trainer.artifacts.agreement import Agreement, compare
from trainer.checkpoint import LOCAL
from trainer.conversion.likeness import PROMPTS, Original, load_base, logits_of
from trainer.errors import ArtifactError

QUESTION: Final = "Where is my order?"
NEW_TOKENS: Final = 24
LARGEST_LOSS: Final = {"f32": 1e-3, "f16": 1e-2, "bf16": 5e-2, "q8_0": 0.2}
"""How far the logits may be off, as a share of their own size. SmolLM2-135M: 0.000 in f16, 0.027 in q8_0."""
LARGEST_LOSS_COARSE: Final = 0.8
"""For fewer bits: above it, the file holds another model. Two that have nothing in common are off by 1.4."""


@dataclass(frozen=True, slots=True)
class ReadBack:
    """What was found."""

    agreement: Agreement
    """`relative` is a share of the logits themselves."""
    is_tokenized_alike: bool
    """Whether transformers' reader of GGUF makes the same tokens of the prompts; it ignores how text is split."""
    answer: str
    """Some tokens of an answer by the model that was read back, each the likeliest."""


def read_back(folder: Path, gguf: Path, *, type_name: str) -> ReadBack:
    """The checkpoint in `folder` beside the file made of it.

    Raises:
        ArtifactError: transformers can't read the file, or it answers otherwise than its type explains.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
    wanted = logits_of(load_base(folder), folder)
    gc.collect()
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, **LOCAL}
    try:
        # Its own config has no place for Llama 3.1's RoPE in GGUF: the checkpoint's is compared, then taken.
        _require_same(AutoConfig.from_pretrained(**where), AutoConfig.from_pretrained(folder, **LOCAL))
        model = AutoModelForCausalLM.from_pretrained(
            **where,
            config=AutoConfig.from_pretrained(folder, **LOCAL),
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        theirs = AutoTokenizer.from_pretrained(**where)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"{gguf.name}: can't be read back: {str(error).strip().partition(chr(10))[0]}") from error
    found = logits_of(model, folder)
    agreement = compare(Original(folder, torch.zeros_like(wanted), wanted), found)
    allowed = LARGEST_LOSS.get(type_name, LARGEST_LOSS_COARSE)
    if not agreement.relative <= allowed:
        raise ArtifactError(
            f"{gguf.name}: read back, its logits are off by {agreement.relative:.3g} of their size, where {type_name} "
            f"explains {allowed:g}: the export is wrong; take --to folder."
        )
    return ReadBack(
        agreement=agreement,
        is_tokenized_alike=all(tokenizer(prompt).input_ids == theirs(prompt).input_ids for prompt in PROMPTS),
        answer=_answer(model, tokenizer),
    )


def _require_same(found: Any, wanted: Any) -> None:  # noqa: ANN401  — transformers' configs
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size"):
        if getattr(found, key) != getattr(wanted, key):
            raise ArtifactError(f"The file says {key} {getattr(found, key)}, the checkpoint {getattr(wanted, key)}.")
    for key in ("rms_norm_eps", "max_position_embeddings", "intermediate_size"):
        if abs(getattr(found, key) - getattr(wanted, key)) > 1e-6 * abs(getattr(wanted, key)):
            raise ArtifactError(f"The file says {key} {getattr(found, key)}, the checkpoint {getattr(wanted, key)}.")
    if found.rope_parameters["rope_theta"] != wanted.rope_parameters["rope_theta"]:
        raise ArtifactError("The file says another rope_theta than the checkpoint.")


def _answer(model: Any, tokenizer: Any) -> str:  # noqa: ANN401  — transformers'
    text = _prompt(tokenizer)
    asked = tokenizer(text or QUESTION, return_tensors="pt", add_special_tokens=text is None)
    with torch.inference_mode():
        answered = model.generate(
            **asked, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id or 0
        )
    answer: str = tokenizer.decode(answered[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer


def _prompt(tokenizer: Any) -> str | None:  # noqa: ANN401  — transformers'
    """The question as the chat template has it; None: there is none, or it refuses a lone question."""
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": QUESTION}]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError, KeyError):  # whatever a template trips over
        return None
    return text
