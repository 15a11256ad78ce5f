"""Makes plain LoRA of an adapter that is none, and measures what that costs. Invariant: `out` is whole or not there.

DoRA has no low rank of its own, so it is approximated; AdaLoRA, PiSSA and its like, and LoRA of mixed ranks are LoRA in
other words. One module at a time: of the base, no more than one weight is read; only the measuring at the end loads it.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.conversion.likeness import Original, run_original
from trainer.conversion.peft_config import Method, PeftConfig, read_config
from trainer.conversion.peft_folder import PeftFolder, open_adapter, open_base, require_same_modules
from trainer.conversion.report import Report, Rung, as_markdown
from trainer.conversion.staging import staged
from trainer.conversion.tensor_files import TensorFiles
from trainer.conversion.weight_change import Approximation, approximate, change_of, exact_rank
from trainer.errors import AdapterError, ConversionError
from trainer.progress import LINE_SECONDS, Narrator
from trainer.recipes.saving import write_adapter

LADDER = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM rounds ranks up to: a rank between two steps costs as much as the upper one."""
FIRST_LINE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Conversion:
    """What is asked for."""

    folder: Path
    config: PeftConfig
    out: Path
    base_name: str
    base_folder: Path
    initial: Path | None
    rank: int | None
    """None: the lowest that will do."""
    max_rank: int
    max_error: float


def convert(asked: Conversion, narrator: Narrator) -> Report:
    """Write `asked.out`: adapter_config.json and adapter_model.safetensors of a plain LoRA, and a README.md.

    Raises:
        AdapterError, BaseError: something of what is needed is missing, broken or does not fit.
        ConversionError: `out` can't be written; or no allowed rank comes near enough (`conversion_above_bound`).
    """
    base = open_base(asked.base_folder)
    adapter = open_adapter(asked.folder, asked.config, base)
    initial = open_initial(asked.initial, adapter, base)
    ranks = _ranks(asked, adapter)

    # Each module by itself
    with narrator.step(f"{adapter.config.method}: {len(adapter.modules)} layers to plain LoRA"):
        found = dict(_approximations(adapter, initial, base, ranks, narrator))

    # What it does to the answers
    with narrator.step("running the base and the original on the prompts"):
        original = run_original(asked.base_folder, adapter, initial)
    with staged(asked.out, error=ConversionError) as staging:
        tried = tuple(_climb(asked, found, ranks, original, staging, narrator))
        report = Report(
            method=adapter.config.method,
            base=asked.base_name,
            max_error=asked.max_error,
            errors={module: approximation.errors[tried[-1].rank] for module, approximation in found.items()},
            tried=tried,
        )
        if not tried[-1].is_within(asked.max_error):
            raise ConversionError(_explain(report, asked), code="conversion_above_bound")
        (staging / "README.md").write_text(as_markdown(report), encoding="utf-8")
    return report


def open_initial(stated: Path | None, adapter: PeftFolder, base: TensorFiles) -> PeftFolder | None:
    """What the adapter's training began with, if that must be given to undo it: `stated`, the adapter before training.

    Raises:
        AdapterError: it is needed and not stated, or is not the same adapter's. ConversionError: nothing needs it.
    """
    start = adapter.config.init_lora_weights
    if adapter.config.method is not Method.RESIDUAL:
        if stated is not None:
            raise ConversionError(f"--initial is for PiSSA and its like; {adapter.config.method} begins with nothing.")
        return None
    if stated is None:
        if adapter.config.is_start_recomputed:
            return None
        raise AdapterError(
            f"{adapter.path}: began with {start!r}, which took a part out of the base that can't be computed again: "
            "give the adapter as it was before training, saved with init_lora_weights true, as --initial FOLDER."
        )
    initial = open_adapter(stated, read_config(stated), base)
    require_same_modules(initial, adapter)
    return initial


def _ranks(asked: Conversion, adapter: PeftFolder) -> tuple[int, ...]:
    """The ranks to try, lowest first."""
    if asked.rank is not None:
        return (asked.rank,)
    exact = exact_rank(adapter)
    if exact == 0:
        raise AdapterError(f"{adapter.path}: every layer has rank 0: the adapter changes nothing.")
    if exact is not None and exact <= asked.max_rank:
        return (exact,)
    return (*(rank for rank in LADDER if rank < asked.max_rank), asked.max_rank)


def _approximations(
    adapter: PeftFolder, initial: PeftFolder | None, base: TensorFiles, ranks: Sequence[int], narrator: Narrator
) -> Iterator[tuple[str, Approximation]]:
    said, pause = time.monotonic(), FIRST_LINE_SECONDS
    for done, module in enumerate(adapter.modules):
        if time.monotonic() - said > pause:
            said, pause = time.monotonic(), LINE_SECONDS
            narrator.say(f"{done}/{len(adapter.modules)} layers")
        change = change_of(adapter, module, base.read(f"{module}.weight"), initial)
        if not bool(change.delta.isfinite().all()):
            raise AdapterError(f"{adapter.path}: what it adds to {module} is not finite.")
        yield module, approximate(change, ranks)


def _climb(
    asked: Conversion,
    found: Mapping[str, Approximation],
    ranks: Sequence[int],
    original: Original,
    staging: Path,
    narrator: Narrator,
) -> Iterator[Rung]:
    """Each rank up to the first that will do, whose files are then in `staging`; else up to the last."""
    for rank in ranks:
        with narrator.step(f"running rank {rank} on the prompts"):
            write_plain_lora(staging, found, rank, asked.base_name)
            logits = original.compare(staging)
        error, worst = max((approximation.errors[rank], module) for module, approximation in found.items())
        rung = Rung(rank, worst, error, logits)
        yield rung
        if rung.is_within(asked.max_error):
            return


def write_plain_lora(folder: Path, found: Mapping[str, Approximation], rank: int, base_name: str) -> None:
    """An adapter's two files, in float32, as PEFT trains. The scale is in B, so that alpha / r is 1."""
    tensors = {}
    for module, approximation in found.items():
        b, a = approximation.at(rank)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    config = {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(found),  # full paths: exactly these
        "task_type": "CAUSAL_LM",
    }
    write_adapter(folder, tensors, config)


def _explain(report: Report, asked: Conversion) -> str:
    steps = ", ".join(f"{rung.error:.3g} at rank {rung.rank}" for rung in report.tried)
    return (
        f"{asked.folder}: as plain LoRA, this {report.method} adapter would move the logits otherwise by more than "
        f"{asked.max_error:g} of its own effect: {steps}. Allow a higher --max-error or rank, or serve it merged."
    )
