"""An adapter's files as the fake engine reads them: how far they are sound, and what tells them apart.

Not the gate's reader: an engine looks for itself at what it is given, and refuses by its own rules.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from server.engine.protocol import AdapterRejectedError


def read_digest(path: Path, max_rank: int) -> str | None:
    """The start of a digest of the adapter's weights, or None for one that changes nothing.

    Raises:
        AdapterRejectedError: the files are missing, not what they claim, or of too high a rank.
    """
    try:
        config = json.loads((path / "adapter_config.json").read_bytes())
        rank, alpha = config["r"], config["lora_alpha"]
        tensors = _read_tensors((path / "adapter_model.safetensors").read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterRejectedError("the files can't be read") from error
    ups = {name: tensor for name, tensor in tensors.items() if ".lora_B." in name}
    if not ups or len(tensors) != 2 * len(ups):
        raise AdapterRejectedError("every module needs an A and a B")
    if not all(tensor.ndim == 2 and tensor.shape[1] <= rank <= max_rank for tensor in ups.values()):  # noqa: PLR2004  — A and B are matrices
        raise AdapterRejectedError(f"not of rank {rank}, or above the engine's {max_rank}")
    if not any(tensor.any() for tensor in ups.values()):
        return None
    digest = sha256(repr(alpha).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.tobytes())
    return digest.hexdigest()[:8]


def _read_tensors(raw: bytes) -> dict[str, "np.ndarray[Any, Any]"]:
    """safetensors: a length, a JSON header, the bytes. Values stay bit patterns: only their identity matters here."""
    header_size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + header_size])
    values = raw[8 + header_size :]
    kinds = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
    return {
        name: np.frombuffer(values[slice(*entry["data_offsets"])], kinds[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }
