"""The id of a blob: the sha256 of its canonical files. Digests carry their algorithm: `sha256:<64 hex>`."""

import hashlib
import re
from pathlib import Path
from typing import Final

from adapters.errors import NotFoundError

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
ADAPTER_FILES: Final = (CONFIG_FILE, WEIGHTS_FILE)

_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_DOMAIN: Final = b"lorikeet adapter 1\n"
"""No other sha256 in the world is taken over bytes that begin so."""


def digest_folder(folder: Path) -> str:
    """The digest of an adapter's two files: over each one's name, length and bytes, so that no two share it."""
    total = hashlib.sha256(_DOMAIN)
    for name in ADAPTER_FILES:
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
