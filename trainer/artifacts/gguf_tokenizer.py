"""A checkpoint's tokenizer as GGUF says it: tokens, kinds, merges, and the name of how text is split before them.

Byte-level BPE alone. The split is named by what tokenizer.json does: what is not known here is refused, for a wrong
name gives other tokens and no error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gguf import TokenType

from trainer.artifacts.documents import read_object
from trainer.errors import ArtifactError

_WORDS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS: Final[Mapping[str, str]] = {
    _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _WORDS + r"\p{N}" + _REST: "qwen2",
}
"""The regular expression of the split → its name in llama.cpp."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What is written of a tokenizer."""

    split: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    special: Mapping[str, int]
    """bos, eos, eot, pad → id, where there is one."""
    starts_with_bos: bool
    template: str | None


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """Of the checkpoint in `folder`, whose embedding has `size` rows. Raises ArtifactError, BaseError."""
    stated, settings = read_object(folder / "tokenizer.json"), read_object(folder / "tokenizer_config.json")
    model = stated.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback") or not isinstance(model.get("vocab"), dict):
        raise ArtifactError(
            f"The tokenizer is no byte-level BPE but {model.get('type', 'unknown')}"
            f"{' with byte fallback' if model.get('byte_fallback') else ''}: that is not exported; take --to folder."
        )
    ids: dict[str, int] = {**model["vocab"], **{token["content"]: token["id"] for token in stated["added_tokens"]}}
    added = {token["id"]: token for token in stated["added_tokens"]}
    by_id = {number: text for text, number in ids.items()}
    if max(by_id) >= size:
        raise ArtifactError(f"The tokenizer has the id {max(by_id)}, and the embedding has {size} rows.")
    return Vocabulary(
        split=_split_of(stated),
        tokens=tuple(by_id.get(number, f"[PAD{number}]") for number in range(size)),
        kinds=tuple(int(_kind(number, by_id, added)) for number in range(size)),
        merges=tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]),
        special=_special(folder, settings, ids),
        starts_with_bos=_starts_with_bos(stated, settings),
        template=_template(folder, settings),
    )


def _split_of(stated: Mapping[str, Any]) -> str:
    normalizer, steps = stated.get("normalizer"), stated.get("pre_tokenizer") or {}
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise ArtifactError(
            f"The tokenizer's normalizer {normalizer.get('type')} has no name in GGUF; take --to folder."
        )
    listed = steps.get("pretokenizers", [steps])
    *before, last = listed
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space"):
        splits_words = bool(last.get("use_regex", True))
        if not before and splits_words:
            return "gpt-2"
        if (
            len(before) == 1
            and splits_words
            and before[0].get("type") == "Digits"
            and before[0].get("individual_digits")
        ):
            return "smollm"
        if len(before) == 1 and not splits_words and before[0].get("type") == "Split":
            expression = before[0].get("pattern", {}).get("Regex")
            name = SPLITS.get(expression)
            # llama.cpp takes a whole word that is a token before it merges, for this one and not for the other.
            if name is not None and bool(stated["model"].get("ignore_merges")) == (name == "llama-bpe"):
                return name
    raise ArtifactError(
        "How the tokenizer splits text before its merges has no name here: known are gpt-2, smollm, llama-bpe and "
        "qwen2; take --to folder."
    )


def _kind(number: int, by_id: Mapping[int, str], added: Mapping[int, Mapping[str, Any]]) -> TokenType:
    if number not in by_id:
        return TokenType.UNUSED
    if number not in added:
        return TokenType.NORMAL
    return TokenType.CONTROL if added[number].get("special") else TokenType.USER_DEFINED


def _special(folder: Path, settings: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, int]:
    special = {}
    for name in ("bos", "eos", "pad"):
        stated = settings.get(f"{name}_token")
        text = stated.get("content") if isinstance(stated, dict) else stated
        if isinstance(text, str) and text in ids:
            special[name] = ids[text]
    # A model may stop at more than one: the tokenizer's own, and what ends a turn.
    for stop in stop_ids(folder):
        if "eos" not in special:
            special["eos"] = stop
        elif stop != special["eos"]:
            special.setdefault("eot", stop)
    return special


def stop_ids(folder: Path) -> list[int]:
    """The ids at which the checkpoint's generation_config.json ends an answer."""
    path = folder / "generation_config.json"
    stated = read_object(path).get("eos_token_id") if path.is_file() else None
    return [number for number in (stated if isinstance(stated, list) else [stated]) if isinstance(number, int)]


def _starts_with_bos(stated: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """What the post-processor does; without one that says, the setting."""
    listed = stated.get("post_processor") or {}
    for step in listed.get("processors", [listed]):
        if step.get("type") == "TemplateProcessing":
            return "SpecialToken" in (step.get("single") or [{}])[0]
    return bool(settings.get("add_bos_token"))


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    stated = settings.get("chat_template")
    return stated if isinstance(stated, str) else None
