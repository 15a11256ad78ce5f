"""The chat template: the base's own, or none. A template is a program, and it runs in the server."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adapters.fingerprint import KEPT
from adapters.gate.checkpoint import names
from adapters.refusals import Faults, Refusal
from adapters.values import Base


def check_template(folder: Path, tokenizer_config: Mapping[str, Any], base: Base, *, faults: Faults) -> None:
    """Add `chat_template_mismatch` to `faults` unless every template in the upload is the base's, byte for byte."""
    faults.add(
        Refusal.CHAT_TEMPLATE_MISMATCH,
        (
            f"the chat template in {place} is not the base's: leave it out, or bring the base's own"
            for place, template in _templates(folder, tokenizer_config)
            if digest_of(template) != base.chat_template_digest
        ),
    )


def template_of(base: Base) -> bytes | None:
    """The base's own; None if it has none, or if nothing is known of it."""
    kept = base.config.get(KEPT)
    text = kept.get("chat_template") if isinstance(kept, dict) else None
    return text.encode("utf-8") if isinstance(text, str) else None


def digest_of(template: bytes | None) -> str | None:
    """`sha256:<hex>`; None of what is no template."""
    return None if template is None else f"sha256:{hashlib.sha256(template).hexdigest()}"


def _templates(folder: Path, tokenizer_config: Mapping[str, Any]) -> Iterator[tuple[str, bytes | None]]:
    """Where there is one, and its text; no text where something else stands in its place."""
    path = folder / names.TEMPLATE
    if path.exists():
        yield names.TEMPLATE, path.read_bytes()
    stated = tokenizer_config.get("chat_template")
    if stated is None:
        return
    for each in stated if isinstance(stated, list) else [stated]:
        text = each.get("template") if isinstance(each, dict) else each
        raw = text.encode("utf-8", "replace") if isinstance(text, str) else b""
        yield names.TOKENIZER_CONFIG, raw
