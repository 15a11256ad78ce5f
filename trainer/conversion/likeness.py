"""How like the original a converted adapter answers: both beside the base, on a few fixed prompts, logit by logit.

In float32, so that what is measured is the conversion. Holds one model at a time, and reads only what is on the disk:
the original is run by PEFT itself, which shares nothing with the conversion's own arithmetic. Invariant: no code that
lies beside weights is run, and PEFT is told nothing of an adapter's config but what was checked.
"""

import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from trainer.conversion.peft_config import Method
from trainer.conversion.peft_folder import PeftFolder
from trainer.conversion.report import Difference
from trainer.errors import AdapterError, BaseError

PROMPTS = (
    "The capital of France is",
    "Dear customer, thank you for your message. Where is my order?",
    "def mean(values):\n    return",
    '{"name": "Ada", "born": 1815, "known for":',
)
Prepare = Callable[[AutoModelForCausalLM], None]
NOISE = 1e-5
"""A shift of the base's logits below this share of them is rounding."""


@dataclass(frozen=True, slots=True)
class Original:
    """The logits to compare with, (positions, vocabulary), each position's around zero."""

    base_folder: Path
    base: torch.Tensor
    adapted: torch.Tensor

    def compare(self, converted: Path) -> Difference:
        """Run the base with the plain LoRA in the folder `converted`."""
        logits = logits_of(with_adapter(load_base(self.base_folder), converted, None), self.base_folder)
        return self.difference(logits)

    def difference(self, found: torch.Tensor) -> Difference:
        """`found` beside what was wanted, (positions, vocabulary) each; relative to what the adapter does."""
        off = (found - self.adapted).abs()
        shift = float(torch.linalg.norm(self.adapted - self.base))
        floor = NOISE * float(torch.linalg.norm(self.base))
        return Difference(
            largest=float(off.max()), mean=float(off.mean()), relative=float(torch.linalg.norm(off)) / max(shift, floor)
        )


def run_original(
    base_folder: Path, adapter: PeftFolder, initial: PeftFolder | None, *, prepare: Prepare | None = None
) -> Original:
    """The base's own logits and those with the adapter as it was trained. `prepare` changes the base beforehand.

    Raises:
        BaseError: transformers can't load the base or its tokenizer. AdapterError: PEFT can't load the adapter.
    """
    disable_progress_bar()
    model = load_base(base_folder)
    if prepare is not None:
        prepare(model)
    base = logits_of(model, base_folder)
    if initial is not None:
        # The weights that training ran on: the base's without the initial adapter's part.
        for module in adapter.modules:
            parts = initial.read(module)
            with torch.no_grad():
                model.get_submodule(module).weight -= initial.scale(module) * parts["lora_B"] @ parts["lora_A"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT takes AdaLoRA's own masks for patterns that match nothing
            adapted = with_adapter(model, adapter.path, _config_of(adapter, is_start_undone=initial is not None))
    except (ValueError, RuntimeError, TypeError, KeyError, OSError) as error:
        raise AdapterError(f"{adapter.path}: PEFT can't load it: {_first_line(error)}") from error
    return Original(base_folder, base, logits_of(adapted, base_folder))


def _config_of(adapter: PeftFolder, *, is_start_undone: bool) -> LoraConfig:
    """What the adapter's config means, and the modules that it has tensors for: what it names them by is not read."""
    config = adapter.config
    is_start_repeated = config.is_start_recomputed and not is_start_undone
    meaning = {
        "lora_alpha": config.lora_alpha,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "init_lora_weights": config.init_lora_weights if is_start_repeated else True,
        "rank_pattern": dict(config.rank_pattern or {}),
        "alpha_pattern": dict(config.alpha_pattern or {}),
        "target_modules": list(adapter.modules),
        "task_type": config.task_type,
        "inference_mode": True,
    }
    if config.method is Method.ADALORA:
        return AdaLoraConfig(**meaning, init_r=config.init_r, tinit=0, tfinal=0, total_step=1)
    return LoraConfig(**meaning, r=config.r)


def with_adapter(model: AutoModelForCausalLM, folder: Path, config: LoraConfig | None) -> PeftModel:
    """The model with the adapter in `folder` on it; None: plain LoRA, as its own config says."""
    return PeftModel.from_pretrained(model, folder, config=config, use_safetensors=True, local_files_only=True)


def load_base(base_folder: Path) -> AutoModelForCausalLM:
    """The model in float32. Raises BaseError."""
    gc.collect()  # PEFT's models are cycles: without this, two of them would be in memory
    try:
        return AutoModelForCausalLM.from_pretrained(
            base_folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BaseError(f"{base_folder}: transformers can't load the base: {_first_line(error)}") from error


def logits_of(model: AutoModelForCausalLM, base_folder: Path) -> torch.Tensor:
    """Of the prompts, (positions, vocabulary), each position's around zero. Raises BaseError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(base_folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BaseError(f"{base_folder}: the base's tokenizer can't be loaded: {_first_line(error)}") from error
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(**tokenizer(prompt, return_tensors="pt")).logits[0] for prompt in PROMPTS]).double()
    return logits - logits.mean(dim=-1, keepdim=True)  # what moves all alike, no softmax sees


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
