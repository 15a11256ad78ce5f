"""The JSON files of a checkpoint: each is one strict object, of a bounded size once it is parsed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.refusals import Faults, Refusal
from adapters.strict_json import parse_strictly


def read_object(
    path: Path, *, faults: Faults, code: Refusal = Refusal.INVALID_CONFIG, max_values: int | None = None
) -> dict[str, Any] | None:
    """The object in a file; None if there is no such file, or no telling: then `code` is in `faults`."""
    if not path.exists():
        return None
    raw = path.read_bytes()
    # Before it becomes as many objects: 40 MB of `{},` take 1.3 GB parsed.
    if max_values is not None and max(raw.count(mark) for mark in (b"{", b"[", b",")) > max_values:
        faults.add(code, [f"{path.name} holds more than {max_values} values"])
        return None
    try:
        stated = parse_strictly(raw)
    except ValueError as error:
        faults.add(code, [f"{path.name} can't be read: {error}"])
        return None
    if not isinstance(stated, dict):
        faults.add(code, [f"{path.name} is not a JSON object"])
        return None
    return stated


def as_text(value: Mapping[str, Any], *, indent: int | None = 2) -> str:
    """The one way in which a value is written. Raises ValueError for what no strict parser would read again."""
    separators = (",", ": ") if indent else (",", ":")
    text = json.dumps(value, indent=indent, separators=separators, sort_keys=True, ensure_ascii=False, allow_nan=False)
    text.encode("utf-8")  # half of a surrogate pair is no text
    return text + "\n"
