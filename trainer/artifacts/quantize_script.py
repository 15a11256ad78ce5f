"""What runs in the environment of llmcompressor: a model is read, quantised and written. One JSON file asks it.

Invariant: it imports nothing of ours. That environment has this one file, and other versions of transformers and
compressed-tensors than the trainer's. Calibration arrives as token ids: no text is made a prompt of in two ways.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(packages: str, path: Path) -> None:
    """Do what the JSON object in `path` asks, with the packages in a folder before all others.

    Its keys are those of `trainer.artifacts.quantize_environment.Request`.
    """
    sys.path.insert(0, packages)
    asked = json.loads(path.read_text(encoding="utf-8"))

    from datasets import Dataset  # noqa: PLC0415  — the environment's own, and slow
    from llmcompressor import oneshot  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    options = {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True, "dtype": "auto"}
    model = AutoModelForCausalLM.from_pretrained(asked["model"], **options)
    samples = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in asked["samples"]]
    calibration: dict[str, Any] = {}
    if samples:
        calibration = {
            "dataset": Dataset.from_list(samples),
            "num_calibration_samples": len(samples),
            "max_seq_length": max(len(sample["input_ids"]) for sample in samples),
            "shuffle_calibration_samples": False,
        }
    oneshot(model=model, recipe=_recipe(asked), **calibration)
    model.save_pretrained(asked["out"], save_compressed=True, safe_serialization=True)


def _recipe(asked: dict[str, Any]) -> list[Any]:
    from compressed_tensors.quantization import QuantizationScheme  # noqa: PLC0415
    from llmcompressor.modifiers.gptq import GPTQModifier  # noqa: PLC0415
    from llmcompressor.modifiers.quantization import QuantizationModifier  # noqa: PLC0415

    group = {
        "targets": ["Linear"],
        "weights": asked["weights"],
        "input_activations": asked["activations"],
    }
    layers = {"config_groups": {"group_0": QuantizationScheme.model_validate(group)}, "ignore": asked["ignore"]}
    if asked["algorithm"] == "gptq":
        return [GPTQModifier(**layers, actorder=None, dampening_frac=0.01)]
    if asked["algorithm"] == "awq":
        from llmcompressor.modifiers.transform.awq import AWQModifier  # noqa: PLC0415

        _leave_unpinned()
        return [AWQModifier(duo_scaling="both"), QuantizationModifier(**layers)]
    return [QuantizationModifier(**layers)]


def _leave_unpinned() -> None:
    """AWQ pins what it keeps of each layer for the way to an accelerator, and fails where there is none (0.14.0.1)."""
    import torch  # noqa: PLC0415
    from llmcompressor.pipelines.cache import IntermediatesCache  # noqa: PLC0415

    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = _do_nothing


def _do_nothing(*_arguments: object) -> None:
    pass


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
