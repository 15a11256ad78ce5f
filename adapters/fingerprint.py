"""What makes two base checkpoints the same: their tensors, their tokenizer, their chat template.

Invariant: how the checkpoint is cut into shards, and what a library's version writes around it, change nothing.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from adapters.errors import InvalidError
from adapters.names import quoted
from adapters.safetensors import Entry, SafetensorsError, read_entries
from adapters.strict_json import parse_strictly
from adapters.tokenizer_steps import tokenizer_steps

KEPT: Final = "lorikeet"
"""Beside its config.json's own keys, `BaseFingerprint.config` has this one: what else the gate asks of a base.

`chat_template` is the template's text or null, `tokenizer_steps` the digests of the steps that only this base allows,
`quantised_from` the fingerprint of the base whose weights these are in fewer bits, where the operator said so
(`lorikeet base --quantised-from`).
"""
_MAX_HEADER_BYTES: Final = 100_000_000
"""The format's own limit: a base comes from the operator, not from a stranger."""
_DOMAIN: Final = b"lorikeet base 1\n"


@dataclass(frozen=True, slots=True)
class BaseFingerprint:
    """The identity of a base, with what was counted on the way. Digests are `sha256:<hex>`."""

    fingerprint: str
    chat_template_digest: str | None
    parameter_count: int
    size_bytes: int
    """Of the tensors alone."""
    tensors: Mapping[str, tuple[int, ...]]
    """Every tensor → its shape."""
    config: Mapping[str, Any] = field(compare=False)
    """config.json, and `KEPT`. No part of the identity: a library's version writes it in its own way."""


def fingerprint_base(folder: Path) -> BaseFingerprint:
    """Read every byte of the checkpoint in `folder` (0.5 s for 270 MB). Needs no ML stack.

    Raises:
        InvalidError: `base_unreadable`: there are no safetensors, or they, the tokenizer or its config are broken.
    """
    try:
        digests, entries = _tensor_digests(folder)
        tokenizer = _read_object(folder / "tokenizer.json")
        template = _chat_template(folder)
        config = _read_object(folder / "config.json") or {}
        decisive = None if tokenizer is None else _decisive(tokenizer)
        steps = sorted({step.digest for step in tokenizer_steps(tokenizer or {}) if step.digest})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidError(f"The base {quoted(folder.name)} can't be read: {error}.", code="base_unreadable") from error

    described = {"tensors": digests, "tokenizer": decisive, "chat_template": template}
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    return BaseFingerprint(
        fingerprint=_sha256(_DOMAIN + canonical),
        chat_template_digest=None if template is None else _sha256(template.encode("utf-8")),
        parameter_count=sum(math.prod(entry.shape) for entry in entries),
        size_bytes=sum(entry.size_bytes for entry in entries),
        tensors={entry.name: entry.shape for entry in sorted(entries, key=lambda entry: entry.name)},
        config={**config, KEPT: {"chat_template": template, "tokenizer_steps": steps}},
    )


def quantised_from(config: Mapping[str, Any]) -> str | None:
    """What the operator said that a base was quantised from: a fingerprint. A version's says its row."""
    kept = config.get(KEPT)
    stated = kept.get("quantised_from") if isinstance(kept, dict) else None
    return stated if isinstance(stated, str) else None


def with_quantised_from(config: Mapping[str, Any], fingerprint: str | None) -> dict[str, Any]:
    """The config that says so, or nothing of it."""
    kept = config.get(KEPT)
    if not isinstance(kept, dict):
        return dict(config)
    rest = {key: value for key, value in kept.items() if key != "quantised_from"}
    return {**config, KEPT: rest if fingerprint is None else {**rest, "quantised_from": fingerprint}}


def _tensor_digests(folder: Path) -> tuple[dict[str, list[Any]], list[Entry]]:
    """Each tensor's dtype, shape and digest by its name, and all entries."""
    digests: dict[str, list[Any]] = {}
    entries: list[Entry] = []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            for entry in read_entries(path, max_header_bytes=_MAX_HEADER_BYTES):
                if entry.name in digests:
                    raise SafetensorsError(f"tensor {entry.name} is in two of its files")
                total = hashlib.sha256()
                for chunk in entry.read(file):
                    total.update(chunk)
                digests[entry.name] = [entry.dtype, entry.shape, total.hexdigest()]
                entries.append(entry)
    if not entries:
        raise SafetensorsError("it holds no .safetensors file with tensors")
    return digests, entries


def _decisive(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """What decides which ids a text becomes. Merges are pairs here; older versions write each as one text."""
    model = tokenizer["model"]
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or []]
    added = [[token["id"], token["content"], token["special"]] for token in tokenizer.get("added_tokens") or []]
    return {"type": model.get("type"), "vocabulary": model["vocab"], "merges": merges, "added": sorted(added)}


def _read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file."""
    if not path.exists():
        return None
    stored = parse_strictly(path.read_bytes())
    if not isinstance(stored, dict):
        raise ValueError(f"its {path.name} is not a JSON object")  # noqa: TRY004  — as of any other content
    return stored


def _chat_template(folder: Path) -> str | None:
    """The text of the default template: a file of its own, or in the tokenizer's config."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_bytes().decode("utf-8")
    path = folder / "tokenizer_config.json"
    template = parse_strictly(path.read_bytes()).get("chat_template") if path.exists() else None
    if isinstance(template, list):  # several, named
        template = next((each["template"] for each in template if each["name"] == "default"), None)
    if not (template is None or isinstance(template, str)):
        raise ValueError("its chat template is no text")
    return template


def _sha256(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"
