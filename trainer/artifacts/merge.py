"""Adds an adapter to its base's weights. Invariants: `out` is whole or not there; what is not changed keeps its bytes.

One tensor at a time: memory never holds the model, until the end measures how alike the two answer.
"""

import resource
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.artifacts.agreement import Agreement, agree
from trainer.artifacts.documents import copy_documents
from trainer.artifacts.merge_report import MergeReport, Onto, Rounding, as_json, as_markdown
from trainer.artifacts.nf4 import Nf4
from trainer.artifacts.shards import DTYPES, Slot, write_shard
from trainer.checkpoint import LOCAL, module_table
from trainer.conversion.convert import open_initial
from trainer.conversion.likeness import run_original
from trainer.conversion.peft_config import Method, PeftConfig
from trainer.conversion.peft_folder import PeftFolder, open_adapter, open_base
from trainer.conversion.staging import staged
from trainer.conversion.tensor_files import TensorFiles
from trainer.conversion.weight_change import change_of
from trainer.errors import AdapterError, ArtifactError, BaseError
from trainer.progress import LINE_SECONDS, Narrator
from trainer.source import write_card

NAMES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True, slots=True)
class Merge:
    """What is asked for."""

    label: str
    folder: Path
    config: PeftConfig
    initial: Path | None
    base_name: str
    base_fingerprint: str | None
    base_folder: Path
    onto: Onto
    is_double: bool
    """Of `Onto.DEQUANTISED`: whether NF4's scales were quantised, too."""
    trained_in: str | None
    """The same: which precision the run computed in. None: nobody says; each tensor in that of the base."""
    precision: str | None
    """None: each tensor in that of the base."""
    out: Path
    is_measured: bool


def merge(asked: Merge, narrator: Narrator) -> MergeReport:
    """Write `asked.out`: the base's checkpoint with the adapter in its weights, and a README.md.

    Raises:
        AdapterError, BaseError: something of what is needed is missing, broken or does not fit.
        ArtifactError: the head is tied to the embeddings and the adapter changes it; a number is too large for the
            precision; `out` can't be written.
    """
    started = time.monotonic()
    base = open_base(asked.base_folder)
    adapter = open_adapter(asked.folder, asked.config, base)
    initial = open_initial(asked.initial, adapter, base)
    _require_mergeable(asked, adapter)
    nf4 = _held(asked, base) if asked.onto is Onto.DEQUANTISED else None

    with staged(asked.out, error=ArtifactError) as staging:
        # The weights, shard by shard as the base has them
        sums = _Sums(base, adapter, initial, nf4)
        with narrator.step(f"{adapter.config.method}: {len(adapter.modules)} layers merged"):
            size_bytes = _write_weights(asked, base, sums, staging, narrator)
        peak_memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # which counts KiB, on Linux

        # All else as it is
        copy_documents(asked.base_folder, staging, precision=_dtypes(asked, base), size_bytes=size_bytes)

        # What it does to the answers
        agreement = _measure(asked, adapter, initial, nf4, staging, narrator) if asked.is_measured else None
        report = MergeReport(
            source=asked.label,
            base=asked.base_name,
            base_fingerprint=asked.base_fingerprint,
            method=adapter.config.method.value,
            layers=len(adapter.modules),
            onto=asked.onto,
            precision=asked.precision or _stored_precision(base, adapter),
            rounding=sums.rounding(),
            agreement=agreement,
            size_bytes=size_bytes,
            seconds=round(time.monotonic() - started, 1),
            peak_memory_bytes=peak_memory_bytes,
        )
        write_card(staging, {"kind": "merged", **as_json(report)}, as_markdown(report))
    return report


class _Sums:
    """The base's tensors with the adapter in them, and what rounding took."""

    def __init__(
        self,
        base: TensorFiles,
        adapter: PeftFolder,
        initial: PeftFolder | None,
        nf4: Nf4 | None,
    ) -> None:
        self._base, self._adapter, self._initial, self._nf4 = base, adapter, initial, nf4
        self._quantised = nf4.modules if nf4 else frozenset[str]()
        self._changed = frozenset(adapter.modules)
        self._counts: dict[str, tuple[int, int, float, float]] = {}
        """layer → its weights, the changed ones, ‖rounding‖², ‖change‖²."""

    def read(self, slot: Slot) -> torch.Tensor:
        """The tensor to write; one that nothing changes has its own bytes, unless another dtype is wanted."""
        module = slot.name.removesuffix(".weight")
        if module not in self._changed | self._quantised:
            tensor = self._base.read_as_it_is(slot.name)
            return _cast(tensor, slot) if self._base.dtype(slot.name) != slot.dtype else tensor
        weight = self._base.read(slot.name)
        if self._nf4 and module in self._quantised:
            weight = self._nf4.dequantised(module, weight)
        if module not in self._changed:
            return _cast(weight, slot)
        delta = change_of(self._adapter, module, weight, self._initial).delta
        if not bool(delta.isfinite().all()):
            raise AdapterError(f"{self._adapter.path}: what it adds to {module} is not finite.")
        total = weight + delta
        written = _cast(total, slot)
        self._counts[module] = (
            written.numel(),
            int((written != weight.to(written.dtype)).sum()),
            float((written.float() - total).square().sum()),
            float(delta.square().sum()),
        )
        return written

    def rounding(self) -> Rounding:
        """Over all that was read."""
        lost = {module: (off / max(change, 1e-30)) ** 0.5 for module, (_, _, off, change) in self._counts.items()}
        worst = max(lost, key=lambda module: lost[module])
        total, changed, off, change = (sum(column) for column in zip(*self._counts.values(), strict=True))
        return Rounding(changed / total, (off / max(change, 1e-30)) ** 0.5, worst, lost[worst])


def _cast(tensor: torch.Tensor, slot: Slot) -> torch.Tensor:
    """The tensor in the dtype of its place. Raises ArtifactError if a number of it is too large for that."""
    written = tensor.to(DTYPES[slot.dtype])
    if not bool(written.isfinite().all()):
        raise ArtifactError(
            f"{slot.name}: holds {float(tensor.abs().max()):.3g}, and {slot.dtype} goes up to "
            f"{torch.finfo(written.dtype).max:.3g}: merge in --precision bfloat16 or float32."
        )
    return written


def _write_weights(asked: Merge, base: TensorFiles, sums: _Sums, staging: Path, narrator: Narrator) -> int:
    """How many bytes the tensors have."""
    said, size_bytes = time.monotonic(), 0
    for number, (file, names) in enumerate(base.by_file.items(), start=1):
        slots = [_slot(base, name, asked.precision) for name in names]
        write_shard(staging / file.name, slots, sums.read)
        size_bytes += sum(slot.size_bytes for slot in slots)
        if time.monotonic() - said > LINE_SECONDS:
            said = time.monotonic()
            narrator.say(f"{number}/{len(base.by_file)} shards")
    return size_bytes


def _slot(base: TensorFiles, name: str, precision: str | None) -> Slot:
    stored = base.dtype(name)
    return Slot(name, NAMES[precision] if precision and stored in DTYPES else stored, base.shape(name))


def _stored_precision(base: TensorFiles, adapter: PeftFolder) -> str:
    stored = sorted({base.dtype(f"{module}.weight") for module in adapter.modules})
    return "+".join(next((name for name, code in NAMES.items() if code == each), each) for each in stored)


def _require_mergeable(asked: Merge, adapter: PeftFolder) -> None:
    at_ends = [module for module in adapter.modules if module.rpartition(".")[2] in {"lm_head", "embed_tokens"}]
    if at_ends and _is_tied(asked.base_folder):
        raise ArtifactError(
            f"{asked.label}: changes {at_ends[0]}, yet the base's head is its embedding: one of the two would change "
            "without the other; serve the adapter unmerged."
        )
    if asked.onto is Onto.DEQUANTISED and adapter.config.method is Method.RESIDUAL:
        raise ArtifactError(f"{asked.label}: its training changed the base before it was quantised: use --onto bf16.")


def _held(asked: Merge, base: TensorFiles) -> Nf4:
    """As `recipes.base_model` loads it: "mixed" holds the weights in float32."""
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32, "mixed": torch.float32}.get(asked.trained_in or "")
    return Nf4(base, frozenset(module_table(asked.base_folder)), asked.is_double, dtype)


def _is_tied(base_folder: Path) -> bool:
    """Whether head and embedding are one tensor: what a config.json does not say, its architecture does."""
    try:
        config = AutoConfig.from_pretrained(base_folder, **LOCAL)
    except (OSError, ValueError) as error:
        raise BaseError(f"{base_folder.name}: transformers can't read its config.json.") from error
    return bool(config.get_text_config().tie_word_embeddings)


def _dtypes(asked: Merge, base: TensorFiles) -> str | None:
    """The precision that config.json must tell of; None: it is the base's."""
    is_changed = any(_slot(base, name, asked.precision).dtype != base.dtype(name) for name in base.names)
    return asked.precision if is_changed else None


def _measure(
    asked: Merge,
    adapter: PeftFolder,
    initial: PeftFolder | None,
    nf4: Nf4 | None,
    staging: Path,
    narrator: Narrator,
) -> Agreement:
    prepare = partial(_dequantise, nf4) if nf4 else None
    with narrator.step("running adapter and merged model on the prompts"):
        return agree(run_original(asked.base_folder, adapter, initial, prepare=prepare), staging)


def _dequantise(nf4: Nf4, model: AutoModelForCausalLM) -> None:
    for module in nf4.modules:
        weight = model.get_submodule(module).weight.data
        weight.copy_(nf4.dequantised(module, weight))
