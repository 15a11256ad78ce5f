"""The steps by which a tokenizer.json takes a text apart and puts one together.

Most do one fixed thing. Some carry a pattern or a table of their own: a regular expression that never ends, or a
replacement that doubles a text thirty times, is a program. Those are told by digest, and a model may bring its base's.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

PARTS: Final = ("normalizer", "pre_tokenizer", "post_processor", "decoder")

_LISTS: Final = ("normalizers", "pretokenizers", "processors", "decoders")
"""Where each part's Sequence has its steps."""
_MAX_DEPTH: Final = 8
_FIXED: Final = frozenset(
    {
        *("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "Strip", "StripAccents", "BertNormalizer"),
        *("Whitespace", "WhitespaceSplit", "Digits", "Punctuation", "UnicodeScripts", "BertPreTokenizer"),
        *("ByteLevel", "Metaspace"),
        *("TemplateProcessing", "RobertaProcessing", "BertProcessing"),
        *("BPEDecoder", "ByteFallback", "Fuse", "WordPiece"),
    }
)


@dataclass(frozen=True, slots=True)
class Step:
    """One step, as compact JSON with sorted keys."""

    type: str
    text: str

    @property
    def digest(self) -> str | None:
        """`sha256:<hex>` if it carries a program of its own."""
        return None if self.type in _FIXED else f"sha256:{hashlib.sha256(self.text.encode('ascii')).hexdigest()}"


def tokenizer_steps(tokenizer: Mapping[str, Any]) -> Iterator[Step]:
    """Every step of a tokenizer.json. Raises ValueError if they are not built as steps are."""
    for part in PARTS:
        if tokenizer.get(part) is not None:
            yield from _steps(part, tokenizer[part])


def _steps(part: str, built: object) -> Iterator[Step]:
    remaining = [(built, 0)]
    while remaining:
        step, depth = remaining.pop()
        if not (isinstance(step, dict) and isinstance(step.get("type"), str)):
            raise ValueError(f"a step of its {part} has no type")  # noqa: TRY004  — as of any other content
        if step["type"] != "Sequence":
            yield Step(step["type"], _text(part, step))
            continue
        inner = step.get(_LISTS[PARTS.index(part)])
        if not (isinstance(inner, list) and len(step) == 2 and depth < _MAX_DEPTH):  # noqa: PLR2004  — type and list
            raise ValueError(f"a Sequence in its {part} is no list of steps, or one too deep in others")
        remaining += [(each, depth + 1) for each in reversed(inner)]


def _text(part: str, step: Mapping[str, Any]) -> str:
    try:
        return json.dumps(step, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except RecursionError as error:
        raise ValueError(f"a step of its {part} is nested too deeply") from error
