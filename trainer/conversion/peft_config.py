"""adapter_config.json of any adapter that can be made plain LoRA, read strictly. Loads no libraries.

What is not listed here may stand in the file while it asks for nothing. Invariant: nothing in it runs as a regular
expression, which could take for ever.
"""

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters import parse_strictly
from trainer.errors import AdapterError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
SHOWN_CHARACTERS = 60
"""Of a strange name, in a message."""
PLAIN_STARTS = frozenset({True, False, "gaussian", "orthogonal", "eva", "mica"})
"""Values of init_lora_weights that leave the base's weights as they are."""
RECOMPUTED_STARTS = frozenset({"pissa", "olora"})
"""Their start is a singular value or QR decomposition of the base's weight: the same each time."""
GIVEN_STARTS = frozenset({"corda", "lora_ga"})
"""Their start follows from data that the adapter does not hold; so does the random one of `pissa_niter_N`."""
WITHOUT_EFFECT = frozenset(
    {
        # the tensors' names say which modules there are
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        # training alone
        *("lora_dropout", "inference_mode", "eva_config", "corda_config", "lora_ga_config"),
        *("target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),
        # PEFT writes these whether or not their feature is on
        *("auto_mapping", "peft_version", "revision", "megatron_core", "qalora_group_size"),
    }
)
MODULE = re.compile(r"\^?[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
"""A key of rank_pattern or alpha_pattern that is a plain name; `^` before it says that it is the whole path."""

Count = Annotated[int, Field(ge=1, lt=2**31)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Method(StrEnum):
    """How an adapter changes a layer's weight W, with s its scale."""

    LORA = "LoRA"
    """W + s·B·A"""
    DORA = "DoRA"
    """m · (W + s·B·A) / ‖W + s·B·A‖, norms by output row: https://arxiv.org/abs/2402.09353"""
    ADALORA = "AdaLoRA"
    """W + s·B·diag(E)·A: https://arxiv.org/abs/2303.10512"""
    RESIDUAL = "PiSSA-style"
    """W - s·B₀·A₀ + s·B·A, where B₀·A₀ is what training began with: https://arxiv.org/abs/2404.02948"""


class PeftConfig(BaseModel):
    """All of the config that has a meaning after training."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    peft_type: Literal["LORA", "ADALORA"]
    r: Count = 8
    init_r: Count = 12
    """AdaLoRA's: what it divides by, however many ranks it left a module."""
    lora_alpha: Positive = 8
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, Count | list[bool]] | None = None
    alpha_pattern: dict[str, Positive] | None = None
    bias: Literal["none"] = "none"
    task_type: Literal["CAUSAL_LM"] | None = None
    base_model_name_or_path: str | None = None

    @property
    def method(self) -> Method:
        """Which of them made it."""
        if self.peft_type == "ADALORA":
            return Method.ADALORA
        if self.init_lora_weights not in PLAIN_STARTS:
            return Method.RESIDUAL
        return Method.DORA if self.use_dora else Method.LORA

    @property
    def is_start_recomputed(self) -> bool:
        """Whether B₀·A₀ follows from the base alone."""
        return str(self.init_lora_weights).lower() in RECOMPUTED_STARTS


def read_config(folder: Path) -> PeftConfig:
    """The config of the adapter in `folder`.

    Raises:
        AdapterError: there is no such folder or file, it is not JSON, or it asks for what can't become plain LoRA.
    """
    _require_files(folder)
    path = folder / CONFIG_FILE
    try:
        stated = parse_strictly(path.read_bytes())
        config = PeftConfig.model_validate_json(json.dumps(stated))
    except ValidationError as error:
        raise AdapterError(f"{path}: {'; '.join(map(_explain, error.errors()))}.") from error
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} can't be read as JSON: {error}.") from error
    _require_convertible(config, path)
    return config


def _require_files(folder: Path) -> None:
    if not folder.is_dir():
        raise AdapterError(f"{folder}: there is no such folder; give the one that PEFT saved the adapter in.")
    if not (folder / CONFIG_FILE).is_file():
        raise AdapterError(f"{folder}: holds no {CONFIG_FILE}, so it is not an adapter as PEFT saves it.")
    if (folder / WEIGHTS_FILE).is_file():
        return
    if (folder / "adapter_model.bin").exists():
        raise AdapterError(
            f"{folder}: its weights are a pickle (adapter_model.bin), which can run code when it is read: "
            "have whoever trained it save it again with safe_serialization=True."
        )
    raise AdapterError(f"{folder}: holds no {WEIGHTS_FILE}.")


def _require_convertible(config: PeftConfig, path: Path) -> None:
    asked = [key for key, value in (config.model_extra or {}).items() if key not in WITHOUT_EFFECT and value]
    if asked:
        raise AdapterError(
            f"{path}: {', '.join(sorted(asked))} must be null, false or empty: what it adds is not part of any "
            "LoRA; publish a merged model instead."
        )
    for key, pattern in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        strange = next((name for name in pattern or {} if not MODULE.fullmatch(name)), None)
        if strange is not None:
            raise AdapterError(
                f"{path}: {key} must be by the modules' plain names, as q_proj or ^model.layers.0.self_attn.q_proj: "
                f"{strange[:SHOWN_CHARACTERS]!r} is a pattern, and patterns are not read."
            )
    start = str(config.init_lora_weights).lower()
    is_known = start in RECOMPUTED_STARTS | GIVEN_STARTS or start.startswith("pissa_niter_")
    if config.method is Method.RESIDUAL and not is_known:
        raise AdapterError(
            f"{path}: nothing is known of init_lora_weights {start!r} that would undo it: "
            "plain starts, PiSSA, OLoRA, CorDA and LoRA-GA can be converted."
        )
    if config.method is Method.RESIDUAL and config.use_dora:
        raise AdapterError(f"{path}: DoRA and init_lora_weights {start!r} together can't be converted.")


def _explain(problem: Any) -> str:  # noqa: ANN401  — pydantic's ErrorDetails
    key = ".".join(map(str, problem["loc"])) or "the config"
    if problem["type"] == "missing":
        return f"the key '{key}' is missing"
    return f"{key}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
