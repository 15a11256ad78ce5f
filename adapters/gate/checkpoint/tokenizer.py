"""tokenizer.json: whole, of ids that the vocabulary has, and of steps that do one fixed thing or are the base's own.

An id beyond the embeddings stops the engine for everybody, wherever it comes from: a word, an added token, or what is
put around each prompt.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from adapters.fingerprint import KEPT
from adapters.gate.checkpoint.documents import as_text
from adapters.limits import MAX_STEP_CHARACTERS, MAX_TOKENIZER_STEPS
from adapters.names import quoted
from adapters.refusals import Faults, Refusal
from adapters.tokenizer_steps import PARTS, tokenizer_steps
from adapters.values import Base

_TOP: Final = frozenset({"version", "truncation", "padding", "added_tokens", "model", *PARTS})
_MODEL: Final[Mapping[str, frozenset[str]]] = {
    "BPE": frozenset(
        {
            *("type", "vocab", "merges", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk"),
            *("byte_fallback", "ignore_merges", "dropout"),
        }
    ),
    "WordPiece": frozenset({"type", "vocab", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word"}),
    "WordLevel": frozenset({"type", "vocab", "unk_token"}),
    "Unigram": frozenset({"type", "vocab", "unk_id", "byte_fallback"}),
}
_FLAGS: Final = frozenset({"single_word", "lstrip", "rstrip", "normalized", "special"})
_MOST_BRACKETS: Final = 1 << 10
"""Of a step that is not the base's: two for each token that it puts around a prompt."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A tokenizer.json as it is to be stored, and the id of each text that is one token."""

    stored: Mapping[str, Any]
    ids: Mapping[str, int]


def read_tokenizer(stated: Mapping[str, Any], vocabulary: int, base: Base, *, faults: Faults) -> Tokenizer | None:
    """What it means; None, with `tokenizer_invalid` in `faults`, if anything is wrong."""
    wrong = list(_wrong(stated, vocabulary, base))
    faults.add(Refusal.TOKENIZER_INVALID, (f"in tokenizer.json, {each}" for each in wrong))
    if wrong:
        return None
    model = dict(stated["model"])
    if "merges" in model:
        # Older versions write each as one text.
        model["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    added = stated.get("added_tokens") or []
    tokenizer = Tokenizer(
        # Cutting prompts short and filling them up is not a model's affair.
        stored={**stated, "truncation": None, "padding": None, "model": model},
        ids=_words(model) | {token["content"]: token["id"] for token in added},
    )
    try:
        as_text(tokenizer.stored)
    except ValueError:
        faults.add(Refusal.TOKENIZER_INVALID, ["in tokenizer.json, a text is no Unicode, or a number is infinite"])
        return None
    return tokenizer


def _wrong(stated: Mapping[str, Any], vocabulary: int, base: Base) -> Iterator[str]:
    for key in sorted(stated.keys() - _TOP):
        yield f"the key {quoted(key)} is not known"
    if stated.get("version") != "1.0":
        yield "'version' must be '1.0'"
    yield from _wrong_model(stated.get("model"), vocabulary)
    yield from _wrong_tokens(stated.get("added_tokens"), vocabulary)
    yield from _wrong_steps(stated, base)
    yield from _wrong_ids(stated.get("post_processor"), vocabulary)


def _wrong_model(model: object, vocabulary: int) -> Iterator[str]:
    kind = model.get("type") if isinstance(model, dict) else None
    if not (isinstance(model, dict) and isinstance(kind, str) and kind in _MODEL):
        yield f"'model' must be an object whose type is one of {', '.join(sorted(_MODEL))}"
        return
    for key in sorted(model.keys() - _MODEL[kind]):
        yield f"the model has {quoted(key)}, which a {kind} has not"
    if model.get("dropout"):
        yield "'dropout' must be null: a text has the same tokens each time"
    plain = {key: value for key, value in model.items() if key not in {"vocab", "merges"}}
    if any(isinstance(value, dict | list) for value in plain.values()):
        yield "besides its vocabulary and merges, the model has texts, numbers and flags"
    is_known = _is_scored(model.get("vocab")) if kind == "Unigram" else _is_numbered(model.get("vocab"))
    if not is_known:
        yield f"the vocabulary is not what a {kind} has"
    elif max(_words(model).values(), default=0) >= vocabulary:
        yield f"the vocabulary has ids that are not below the vocab_size of {vocabulary}"
    if kind == "BPE" and not _is_merges(model.get("merges")):
        yield "'merges' is not a list of pairs"


def _is_numbered(vocab: object) -> bool:
    return isinstance(vocab, dict) and all(type(number) is int and number >= 0 for number in vocab.values())


def _is_scored(vocab: object) -> bool:
    return isinstance(vocab, list) and all(
        isinstance(each, list) and len(each) == 2 and isinstance(each[0], str) and type(each[1]) in {int, float}  # noqa: PLR2004
        for each in vocab
    )


def _is_merges(merges: object) -> bool:
    return isinstance(merges, list) and all(
        merge.count(" ") == 1
        if isinstance(merge, str)
        else isinstance(merge, list) and len(merge) == 2 and all(isinstance(side, str) for side in merge)  # noqa: PLR2004
        for merge in merges
    )


def _words(model: Mapping[str, Any]) -> dict[str, int]:
    """Each word's id. A Unigram's stand in their order."""
    vocab = model["vocab"]
    return dict(vocab) if isinstance(vocab, dict) else {word: number for number, (word, _) in enumerate(vocab)}


def _wrong_tokens(tokens: object, vocabulary: int) -> Iterator[str]:
    if tokens is None:
        return
    if not isinstance(tokens, list):
        yield "'added_tokens' is not a list"
        return
    for token in tokens:
        if not (isinstance(token, dict) and token.keys() <= {"id", "content", *_FLAGS}):
            yield "an added token is not described as one"
        elif not (isinstance(token.get("content"), str) and token["content"]):
            yield "an added token has no content"
        elif not (type(token.get("id")) is int and 0 <= token["id"] < vocabulary):
            yield f"the added token {quoted(token['content'])} has an id that is not below {vocabulary}"
        elif not all(isinstance(token.get(flag), bool) for flag in _FLAGS):
            yield f"the added token {quoted(token['content'])} lacks one of {', '.join(sorted(_FLAGS))}"


def _wrong_steps(stated: Mapping[str, Any], base: Base) -> Iterator[str]:
    kept = base.config.get(KEPT)
    of_base = frozenset(kept.get("tokenizer_steps", ())) if isinstance(kept, dict) else frozenset()
    try:
        steps = list(tokenizer_steps(stated))
    except ValueError as error:
        yield str(error)
        return
    if len(steps) > MAX_TOKENIZER_STEPS:
        yield f"there are {len(steps)} steps; at most {MAX_TOKENIZER_STEPS} are allowed"
    for step in steps:
        if step.digest is None:
            if len(step.text) > MAX_STEP_CHARACTERS or step.text.count("[") + step.text.count("{") > _MOST_BRACKETS:
                yield f"a step {quoted(step.type)} is larger than any"
        elif step.digest not in of_base:
            yield f"there is a step {quoted(step.type)} that the base's tokenizer has not: a pattern is a program"


def _wrong_ids(built: object, vocabulary: int) -> Iterator[str]:
    """Whatever number stands in the step that puts tokens around a prompt may become one of its ids."""
    if any(not 0 <= number < vocabulary for number in _numbers(built)):
        yield f"'post_processor' has ids that are not below {vocabulary}"


def _numbers(built: object) -> Iterator[int]:
    remaining: list[object] = [built]
    while remaining:
        value = remaining.pop()
        if isinstance(value, dict):
            remaining += value.values()
        elif isinstance(value, list):
            remaining += value
        elif type(value) is int:
            yield value
