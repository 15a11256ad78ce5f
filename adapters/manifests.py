"""A manifest as JSON and back. Invariant: a field that this program does not know survives the round trip."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from adapters.values import Kind, Manifest

_FIELDS: Final = frozenset(field.name for field in fields(Manifest)) - {"extra"}


def dump_manifest(manifest: Manifest) -> dict[str, Any]:
    """The manifest as it is stored, in manifest.json and in the version's row."""
    stored = asdict(manifest)
    extra = stored.pop("extra")
    return {**extra, **stored, "target_modules": list(manifest.target_modules)}


def write_manifest(path: Path, manifest: Manifest) -> None:
    """manifest.json, in the words of `dump_manifest`."""
    path.write_text(json.dumps(dump_manifest(manifest), indent=2, sort_keys=True) + "\n", encoding="ascii")


def load_manifest(stored: Mapping[str, Any]) -> Manifest:
    """The manifest that `dump_manifest` stored, here or in another version of this program."""
    known = {name: value for name, value in stored.items() if name in _FIELDS}
    known |= {"kind": Kind(stored["kind"]), "target_modules": tuple(stored.get("target_modules", ()))}
    return Manifest(**known, extra={name: value for name, value in stored.items() if name not in _FIELDS})
