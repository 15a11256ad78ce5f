"""Checkpoints in fewer bits, packed by hand as compressed-tensors lays them out. NumPy only; nothing is calibrated."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.builders import Tensor, Tensors, safetensors_bytes

Weights = Mapping[str, NDArray[Any]]
W8A8, FP8, W4A16, W4A16_ZERO_POINT = "w8a8", "fp8", "w4a16", "w4a16-zero-point"
SCHEMES = (W8A8, FP8, W4A16, W4A16_ZERO_POINT)
ONE_IN_FP8 = 0x38


def quantization_config(scheme: str, group_size: int = 32) -> dict[str, Any]:
    """As llmcompressor 0.14 writes it, with all that it says besides."""
    is_packed = scheme in {W4A16, W4A16_ZERO_POINT}
    kind = "float" if scheme == FP8 else "int"
    common: dict[str, Any] = {
        "actorder": None,
        "block_structure": None,
        "observer_kwargs": {},
        "scale_dtype": None,
        "zp_dtype": None,
    }
    weights = common | {
        "dynamic": False,
        "group_size": group_size if is_packed else None,
        "num_bits": 4 if is_packed else 8,
        "observer": "memoryless_minmax",
        "strategy": "group" if is_packed else "channel",
        "symmetric": scheme != W4A16_ZERO_POINT,
        "type": kind,
    }
    per_token = {"dynamic": True, "group_size": None, "num_bits": 8, "observer": None, "strategy": "token"}
    activations = common | per_token | {"symmetric": True, "type": kind}
    layout = {W8A8: "int-quantized", FP8: "float-quantized"}.get(scheme, "pack-quantized")
    return {
        "config_groups": {
            "group_0": {
                "format": layout,
                "input_activations": None if is_packed else activations,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": weights,
            }
        },
        "format": layout,
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.19.0",
    }


def quantised_tensors(
    weights: Weights, modules: Iterable[str], scheme: str, group_size: int = 32, dtype: str = "F32"
) -> Tensors:
    """All tensors of the checkpoint, those of `modules` in fewer bits."""
    of_layers = {f"{module}.weight": module for module in modules}
    tensors: Tensors = {}
    for name, values in weights.items():
        if name in of_layers:
            tensors |= _layer(of_layers[name], values, scheme, group_size, dtype)
        else:
            tensors[name] = Tensor.of(values, dtype)
    return tensors


def rounded(values: NDArray[Any], scheme: str, group_size: int = 32) -> NDArray[Any]:
    """A layer's weights as they come out again."""
    whole, scale = _whole(values, scheme, group_size)
    grouped = whole.reshape(scale.shape[0], scale.shape[1], -1) * scale[:, :, None]
    return np.asarray(grouped.reshape(values.shape), dtype=np.float32)


def quantise_folder(
    source: Path, out: Path, weights: Weights, modules: Iterable[str], scheme: str, group_size: int = 32
) -> Path:
    """`source`'s checkpoint, whose tensors `weights` are, with `modules` in fewer bits."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = quantised_tensors(weights, modules, scheme, group_size)
    (out / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    config = json.loads((out / "config.json").read_bytes())
    config["quantization_config"] = quantization_config(scheme, group_size)
    (out / "config.json").write_text(json.dumps(config))
    return out


def _layer(module: str, values: NDArray[Any], scheme: str, group_size: int, dtype: str) -> Tensors:
    outputs, inputs = values.shape
    if scheme == FP8:
        ones = Tensor("F8_E4M3", (outputs, inputs), bytes([ONE_IN_FP8]) * (outputs * inputs))
        return {f"{module}.weight": ones, f"{module}.weight_scale": Tensor.of(np.ones((outputs, 1)), dtype)}
    whole, scale = _whole(values, scheme, group_size)
    if scheme == W8A8:
        raw = whole.astype("<i1").tobytes()
        weight = Tensor("I8", (outputs, inputs), raw)
        return {f"{module}.weight": weight, f"{module}.weight_scale": Tensor.of(scale, dtype)}
    packed = _packed(whole.astype(np.int64) + 8)
    shape = np.array([outputs, inputs], "<i8").tobytes()
    tensors = {
        f"{module}.weight_packed": Tensor("I32", packed.shape, packed.astype("<u4").tobytes()),
        f"{module}.weight_scale": Tensor.of(scale, dtype),
        f"{module}.weight_shape": Tensor("I64", (2,), shape),
    }
    if scheme == W4A16_ZERO_POINT:
        middle = _packed(np.full((scale.shape[1], outputs), 8)).T
        tensors[f"{module}.weight_zero_point"] = Tensor("I32", middle.shape, middle.astype("<u4").tobytes())
    return tensors


def _whole(values: NDArray[Any], scheme: str, group_size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Whole numbers in the layer's shape, and the scale of each output's groups: one, in 8 bits."""
    most = 127 if scheme == W8A8 else 7
    groups = 1 if scheme == W8A8 else values.shape[1] // group_size
    grouped = values.astype(np.float32).reshape(values.shape[0], groups, -1)
    scale = np.maximum(np.abs(grouped).max(axis=2) / most, 1e-8).astype(np.float32)
    whole = np.clip(np.rint(grouped / scale[:, :, None]), -most - 1, most)
    return whole.reshape(values.shape), scale


def _packed(codes: NDArray[Any]) -> NDArray[Any]:
    """Eight 4-bit codes a word along the last axis, the first in the lowest bits."""
    words = codes.astype(np.uint64).reshape(codes.shape[0], -1, 8) << np.arange(0, 32, 4, dtype=np.uint64)
    return np.asarray(words.sum(axis=2), dtype=np.uint32)
