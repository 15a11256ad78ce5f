"""Reads a base's architecture from its config.json alone, on the meta device: no weights are read, nothing is fetched.

Heavy to import: transformers builds the model.
"""

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from adapters import Module
from trainer.errors import BaseError
from trainer.planning.architecture import Architecture

LARGEST_CONFIG_BYTES = 4 * 2**20


def read_architecture(path: Path) -> Architecture:
    """The architecture that a config.json, or the folder that holds one, describes.

    Raises:
        BaseError: there is none, it is no JSON object, or transformers can't build a causal language model from it.
    """
    file = path / "config.json" if path.is_dir() else path
    fields = _read_object(file)
    with _complaints(file):
        # By what it says, not by where it is: whatever lies beside it, code above all, is not looked at.
        config = AutoConfig.for_model(**fields)
        _require_sizes(config.get_text_config())
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return _architecture(model, file, fields)


def _read_object(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > LARGEST_CONFIG_BYTES:
            raise BaseError(f"{file}: too large for a model's configuration.")
        fields = json.loads(file.read_bytes())
    except OSError as error:
        raise BaseError(f"{file}: can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise BaseError(f"{file}: not JSON: {_in_a_line(error)}.") from error
    family = fields.get("model_type") if isinstance(fields, dict) else None
    if not isinstance(family, str):
        raise BaseError(f'{file}: not a model\'s config.json: it has no model_type, such as "llama".')
    if family not in CONFIG_MAPPING:
        near = difflib.get_close_matches(family, CONFIG_MAPPING, n=1)
        raise BaseError(
            f"{file}: transformers knows no models of the type '{family}'" + (f"; is it '{near[0]}'?" if near else ".")
        )
    return dict(fields)


@contextmanager
def _complaints(file: Path) -> Iterator[None]:
    try:
        yield
    except (
        StrictDataclassError,  # transformers' own checks of a configuration
        ValueError,  # of a family that writes no text
        TypeError,  # a text where a number belongs
        KeyError,
        AttributeError,
        RuntimeError,  # torch: a size below zero
        ArithmeticError,  # no heads at all
        ImportError,  # a family that needs a package of its own
    ) as error:
        raise BaseError(
            f"{file}: not a causal language model that transformers can build: {_in_a_line(error)}"
        ) from error


def _require_sizes(config: Any) -> None:  # noqa: ANN401
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "head_dim")
    nothing = [name for name in names if (size := getattr(config, name, None)) is not None and size <= 0]
    if nothing:
        raise ValueError(f"{', '.join(nothing)} must be above zero")


def _architecture(model: Any, file: Path, fields: dict[str, Any]) -> Architecture:  # noqa: ANN401
    """What the model is made of; of one that also sees or hears, the language model's part gives the layers."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    modules = {name: module for name, module in _linears(model) if module is not head}
    total = sum(parameter.numel() for parameter in model.parameters())  # tied ones come once
    table = model.get_input_embeddings().weight
    linear = sum(module.weight.numel() for module in modules.values())
    heads = config.num_attention_heads
    return Architecture(
        name=file.resolve().parent.name if file.name == "config.json" else file.stem,
        family=config.model_type,
        modules={name: _module(module) for name, module in modules.items()},
        total_parameters=total,
        linear_parameters=linear,
        active_parameters=linear + round(_experts(model) * _per_token(config)),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=_intermediate(config),
        heads=heads,
        key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=table.shape[0],
        is_tied=head is not None and head.weight is table,
        config=fields,
    )


def _linears(model: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    return ((name, module) for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D)))


def _module(module: Any) -> Module:  # noqa: ANN401
    if isinstance(module, Conv1D):  # GPT-2's, which holds its weight the other way round
        return Module(module.weight.shape[0], module.weight.shape[1])
    return Module(module.in_features, module.out_features)


def _experts(model: Any) -> int:  # noqa: ANN401
    """Elements of the weights that only some tokens pass: held as one tensor for all experts of a layer."""
    return sum(weight.numel() for name, weight in model.named_parameters() if ".experts." in name)


def _per_token(config: Any) -> float:  # noqa: ANN401
    """The share of the experts that a token passes; 1 where there are none."""
    chosen = getattr(config, "num_experts_per_tok", None)
    there = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    return chosen / there if chosen and there else 1.0


def _intermediate(config: Any) -> int:  # noqa: ANN401
    chosen = getattr(config, "num_experts_per_tok", None)
    if chosen and getattr(config, "moe_intermediate_size", None):
        return int(chosen * config.moe_intermediate_size)
    width = next(
        (size for name in ("intermediate_size", "ffn_dim", "n_inner") if (size := getattr(config, name, 0))), 0
    )
    return int(width or 4 * config.hidden_size) * (chosen or 1)


def _in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
