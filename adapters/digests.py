"""The id of a blob: the sha256 of its canonical files. Digests carry their algorithm: `sha256:<64 hex>`."""

import hashlib
import re
from pathlib import Path
from typing import Final

from adapters.errors import NotFoundError

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
ADAPTER_FILES: Final = (CONFIG_FILE, WEIGHTS_FILE)
MANIFEST_FILE: Final = "manifest.json"
"""Lies beside a blob's files, and is none of them: it names their digest."""

_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_ADAPTER_DOMAIN: Final = b"lorikeet adapter 1\n"
"""No other sha256 in the world is taken over bytes that begin so."""
_MODEL_DOMAIN: Final = b"lorikeet model 1\n"


def digest_folder(folder: Path) -> str:
    """The digest of a blob's files: over each one's name, length and bytes, so that no two share it.

    Raises:
        OSError: a file can't be read, or is none.
    """
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST_FILE)
    total = hashlib.sha256(_ADAPTER_DOMAIN if names == sorted(ADAPTER_FILES) else _MODEL_DOMAIN)
    for name in names:
        path = folder / name
        total.update(f"{name} {path.stat().st_size}\n".encode("ascii"))
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                total.update(chunk)
    return f"sha256:{total.hexdigest()}"


def hex_of(digest: str) -> str:
    """The digest without its algorithm: the only thing of it that becomes part of a path. Raises NotFoundError."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise NotFoundError("There is nothing with this digest.", code="digest_not_found")
    return match[1]
