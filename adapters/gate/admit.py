"""The gate as one story. Invariant: what passes is not the upload but a file of our own making, equal in meaning."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapters.digests import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE, digest_folder
from adapters.gate.canonical import write_config, write_weights
from adapters.gate.config import LoraConfig, read_config
from adapters.gate.modules import Pair, match_modules
from adapters.gate.receive import receive
from adapters.gate.values import check_values
from adapters.gate.weights import read_tensors
from adapters.limits import Limits
from adapters.refusals import Faults
from adapters.upload.members import Member
from adapters.values import Base, Kind, Manifest

NOOP: Final = "adapter_is_noop"
"""The warning for an adapter that answers as the base does: no product B·A is other than zero."""

OF_ORIGINAL: Final = "trained_on_unquantised_base"
"""The warning for an adapter that was trained on what its base was quantised from."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """What passed: its canonical files, alone in `folder`, and what follows from them."""

    folder: Path
    manifest: Manifest
    warnings: tuple[str, ...]
    model: Base | None = None
    """What it is as a base, if it is a whole model."""


def admit(members: Iterable[Member], staged: Path, base: Base, limits: Limits) -> Admitted:
    """Judge an upload, working inside the empty folder `staged`. Memory stays at one chunk, whatever the upload's size.

    Each step judges what the steps before it left whole, so that one refusal tells of all that is wrong.

    Raises:
        RefusedError: its problems' codes are of `Refusal`, in the order of the steps below.
    """
    faults = Faults()

    # 1 exactly the two files, counted as they stream in
    received = staged / "received"
    receive(members, received, max_weights_bytes=limits.max_upload_bytes, faults=faults)

    # 2 the config: plain LoRA, literals only
    config = _config(received / CONFIG_FILE, base, limits, faults)

    # 3 to 5 the weights
    weights = received / WEIGHTS_FILE
    pairs, is_noop = _weights(weights, config, base, faults)
    if faults or config is None:
        raise faults.refusal()
    config = config.settled(pair.module for pair in pairs)

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
    found = {NOOP: is_noop, OF_ORIGINAL: config.is_of_original}
    return Admitted(canonical, manifest, warnings=tuple(warning for warning, is_so in found.items() if is_so))


def _config(path: Path, base: Base, limits: Limits, faults: Faults) -> LoraConfig | None:
    """None if it is not there, or does not say what a LoRA is: then `faults` does."""
    if not path.exists():
        return None
    return read_config(path.read_bytes(), max_rank=limits.max_rank, base=base, faults=faults)


def _weights(path: Path, config: LoraConfig | None, base: Base, faults: Faults) -> tuple[tuple[Pair, ...], bool]:
    """The pairs that fit the base, and whether they change nothing."""
    # 3 the header, to the file's last byte
    tensors = read_tensors(path, faults=faults) if path.exists() else None
    if tensors is None:
        return (), True

    # 4 one A and one B for layers that this base has, in the shapes that follow
    pairs = match_modules(tensors, config, base, faults=faults)

    # 5 every value finite, and every product that an engine makes of them
    return pairs, check_values(path, pairs, config, faults=faults)
