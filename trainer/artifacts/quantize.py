"""Stores a model's linear layers in fewer bits. Invariants: `out` is whole or not there; all but weights is as it was.

llmcompressor does it, in its own environment; here is what stands around it: what fits, what it looks at, whether what
came of it is what was asked, and how far its answers are from before.
"""

import io
import json
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from adapters import Module, fingerprint_base
from trainer.artifacts.documents import INDEX, copy_documents, read_object
from trainer.artifacts.quantize_calibration import Calibration, read_calibration, texts_to_measure
from trainer.artifacts.quantize_environment import Request, Workshop
from trainer.artifacts.quantize_report import Likeness, QuantizeReport, as_json, as_markdown
from trainer.artifacts.quantize_schemes import Scheme, arguments_of, choose_group_size
from trainer.checkpoint import module_table
from trainer.conversion.likeness import load_base
from trainer.conversion.staging import staged
from trainer.errors import ArtifactError, BaseError
from trainer.progress import Narrator
from trainer.source import write_card

HEAD: Final = "lm_head"
KEY: Final = "quantization_config"
_KEPT: Final = ("num_bits", "type", "symmetric", "strategy", "group_size", "dynamic")
"""What says how a tensor is to be read; the rest of QuantizationArgs is of how it came about."""


@dataclass(frozen=True, slots=True)
class Quantize:
    """What is asked for."""

    label: str
    folder: Path
    base_name: str | None
    base_fingerprint: str | None
    scheme: Scheme
    group_size: int | None
    """None: the largest that fits."""
    calibration: str | None
    """A data file; None: what ships."""
    samples: int
    out: Path
    is_measured: bool


def quantize(asked: Quantize, workshop: Workshop, narrator: Narrator) -> QuantizeReport:
    """Write `asked.out`: the model's checkpoint in fewer bits, and a README.md.

    Raises:
        ArtifactError: the group size fits not every layer; llmcompressor can't be had, or failed.
        BaseError: transformers can't load the model. DatasetError, JobError: the calibration's data can't be used.
    """
    started = time.monotonic()
    modules = _require_plain(asked)
    group_size = choose_group_size(asked.scheme, asked.group_size, modules)
    calibration = _calibration(asked)
    workshop.prepare(narrator)

    with staged(asked.out, error=ArtifactError) as staging:
        # The weights
        arguments = arguments_of(asked.scheme, group_size)
        request = Request(
            model=str(asked.folder.absolute()),
            out=str(staging),
            algorithm=asked.scheme.algorithm,
            weights=arguments.weights,
            activations=arguments.activations,
            ignore=(HEAD,),
            samples=calibration.samples if calibration else (),
        )
        with narrator.step(f"quantising {len(modules)} layers to {asked.scheme.value}"):
            workshop.run(request, narrator)

        # All else as it is
        how = _understood(staging, request)
        _tidy(staging)
        copy_documents(asked.folder, staging)
        _write_config(staging, how)

        # What it does to the answers
        likeness = _measure(asked, staging, narrator) if asked.is_measured else None
        report = QuantizeReport(
            source=asked.label,
            base=asked.base_name,
            scheme=asked.scheme,
            group_size=group_size,
            layers=len(modules),
            calibration=calibration.name if calibration else None,
            calibration_fingerprint=calibration.fingerprint if calibration else None,
            calibration_samples=len(calibration.samples) if calibration else 0,
            calibration_tokens=calibration.tokens if calibration else 0,
            size_bytes_before=_weights_bytes(asked.folder),
            size_bytes=_weights_bytes(staging),
            likeness=likeness,
            seconds=round(time.monotonic() - started, 1),
        )
        stated = {"kind": "merged", "base_fingerprint": asked.base_fingerprint, **as_json(report)}
        write_card(staging, stated, as_markdown(report))
    return report


def _require_plain(asked: Quantize) -> dict[str, Module]:
    """The model's linear layers. Raises ArtifactError, BaseError."""
    if read_object(asked.folder / "config.json").get(KEY):
        raise ArtifactError(f"{asked.label}: is quantised already: quantise what it was made from.")
    return module_table(asked.folder)


def _calibration(asked: Quantize) -> Calibration | None:
    if not asked.scheme.is_calibrated:
        if asked.calibration is not None:
            raise ArtifactError(
                f"--calibration: {asked.scheme.value} looks at no data; leave it out, or use gptq or awq."
            )
        return None
    return read_calibration(asked.calibration, asked.samples, _tokenizer(asked.folder))


# --- what came of it --------------------------------------------------------------------------------------------------


def _understood(folder: Path, request: Request) -> dict[str, Any]:
    """The quantization_config, in the keys that every version of compressed-tensors reads. Raises ArtifactError."""
    stated = read_object(folder / "config.json").get(KEY)
    groups = list(stated.get("config_groups", {}).values()) if isinstance(stated, dict) else []
    if len(groups) != 1 or not isinstance(stated, dict) or stated.get("quant_method") != "compressed-tensors":
        raise ArtifactError("llmcompressor did not write what it was asked for: its config.json has not one group.")
    found = {key: _essence(groups[0].get(key)) for key in ("weights", "input_activations")}
    wanted = {"weights": request.weights, "input_activations": request.activations}
    for key, arguments in wanted.items():
        wrong = {name: value for name, value in (arguments or {}).items() if (found[key] or {}).get(name) != value}
        if wrong or (arguments is None) is not (found[key] is None):
            raise ArtifactError(f"llmcompressor did not write what it was asked for: its {key} are {found[key]}.")
    return {
        "quant_method": "compressed-tensors",
        "format": stated.get("format"),
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], **found, "output_activations": None}},
        "ignore": sorted(request.ignore),
    }


def _essence(arguments: dict[str, Any] | None) -> dict[str, Any] | None:
    if arguments is None:
        return None
    return {key: arguments[key] for key in _KEPT if arguments.get(key) is not None}


def _tidy(folder: Path) -> None:
    """Only the weights and their index are taken; the source's own documents say the rest."""
    for path in list(folder.iterdir()):
        if path.suffix != ".safetensors" and path.name != INDEX:
            path.unlink()


def _write_config(folder: Path, how: dict[str, Any]) -> None:
    config = {**read_object(folder / "config.json"), KEY: how}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _weights_bytes(folder: Path) -> int:
    return fingerprint_base(folder).size_bytes


# --- how far its answers are ------------------------------------------------------------------------------------------


def _measure(asked: Quantize, made: Path, narrator: Narrator) -> Likeness:
    with narrator.step("running the original and the quantised model"):
        disable_progress_bar()
        samples = texts_to_measure(_tokenizer(asked.folder))
        return compare(_log_probabilities(asked.folder, samples), _log_probabilities(made, samples))


def compare(wanted: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> Likeness:
    """Log-probabilities, (positions, vocabulary) of each text."""
    sides = list(zip(wanted, found, strict=True))
    positions = sum(one.shape[0] for one, _ in sides)
    divergence = sum(float((one.exp() * (one - other)).sum()) for one, other in sides) / positions
    same = sum(int((one.argmax(-1) == other.argmax(-1)).sum()) for one, other in sides)
    return Likeness(positions, max(divergence, 0.0), same / positions)


def _log_probabilities(folder: Path, samples: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    with redirect_stderr(io.StringIO()):  # compressed-tensors has a progress bar for each layer
        model: Any = load_base(folder)
    model.eval()
    with torch.inference_mode():
        return [model(torch.tensor([list(ids)])).logits[0].float().log_softmax(-1) for ids in samples]


def _tokenizer(folder: Path) -> Any:  # noqa: ANN401  — transformers ships no types
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BaseError(f"{folder.name}: its tokenizer can't be loaded: {str(error).partition(chr(10))[0]}") from error
