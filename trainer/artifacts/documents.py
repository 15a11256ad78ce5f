"""All of a checkpoint but its weights: copied byte for byte, save what must say another precision."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from trainer.errors import BaseError

DOCUMENTS: Final = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model"),
    *("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "USE_POLICY.md"),
)
"""Nothing else is copied: no code, no pickles."""
INDEX: Final = "model.safetensors.index.json"


def copy_documents(source: Path, out: Path, *, precision: str | None = None, size_bytes: int = 0) -> None:
    """`precision`: what config.json is to say; None: nothing is changed, and the index of shards is the source's own.

    Raises BaseError if a document that must change can't be read.
    """
    for name in (*DOCUMENTS, INDEX):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    if precision is None:
        return
    config = read_object(out / "config.json")
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = precision
    _write_object(out / "config.json", config)
    if (out / INDEX).is_file():
        _write_object(out / INDEX, {**read_object(out / INDEX), "metadata": {"total_size": size_bytes}})


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises BaseError."""
    try:
        stated = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BaseError(f"{path}: can't be read as JSON.") from error
    if not isinstance(stated, dict):
        raise BaseError(f"{path}: is no JSON object.")
    return stated


def _write_object(path: Path, stated: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(stated, indent=2) + "\n")
