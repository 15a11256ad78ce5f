"""The gate as one story. Invariant: what passes is not the upload but a file of our own making, equal in meaning."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapters.digests import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE, digest_folder
from adapters.gate.canonical import write_config, write_weights
from adapters.gate.config import read_config
from adapters.gate.modules import match_modules
from adapters.gate.receive import receive
from adapters.gate.values import check_values
from adapters.gate.weights import read_tensors
from adapters.limits import Limits
from adapters.upload.members import Member
from adapters.values import Base, Kind, Manifest

NOOP: Final = "adapter_is_noop"
"""The warning for an adapter that answers as the base does: no product B·A is other than zero."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """An adapter that passed: its canonical files, alone in `folder`, and what follows from them."""

    folder: Path
    manifest: Manifest
    warnings: tuple[str, ...]


def admit(members: Iterable[Member], staged: Path, base: Base, limits: Limits) -> Admitted:
    """Judge an upload, working inside the empty folder `staged`. Memory stays at one chunk, whatever the upload's size.

    Raises:
        RefusedError: with a code of `Refusal`, in the order of the steps below.
    """
    # 1 exactly the two files, counted as they stream in
    received = staged / "received"
    receive(members, received, max_weights_bytes=limits.max_upload_bytes)

    # 2 the config: plain LoRA, literals only
    config = read_config((received / CONFIG_FILE).read_bytes(), max_rank=limits.max_rank)

    # 3 the weights' header, to the file's last byte
    weights = received / WEIGHTS_FILE
    tensors = read_tensors(weights)

    # 4 one A and one B for layers that this base has, in the shapes that follow
    pairs = match_modules(tensors, config, base)

    # 5 every value finite, and every product that an engine makes of them
    is_noop = check_values(weights, pairs, scale=config.scale)

    # 6 both files anew, from what was understood
    canonical = staged / "canonical"
    canonical.mkdir()
    write_config(canonical / CONFIG_FILE, config, pairs, base)
    entries = write_weights(canonical / WEIGHTS_FILE, weights, pairs)

    manifest = Manifest(
        digest=digest_folder(canonical),
        kind=Kind.LORA,
        rank=config.rank,
        alpha=config.alpha,
        target_modules=tuple(sorted({pair.suffix for pair in pairs})),
        dtype="+".join(sorted({entry.dtype for entry in entries})),
        tensor_count=len(entries),
        size_bytes=sum((canonical / name).stat().st_size for name in ADAPTER_FILES),
        base_fingerprint=base.fingerprint,
        use_rslora=config.use_rslora,
    )
    return Admitted(canonical, manifest, warnings=(NOOP,) if is_noop else ())
