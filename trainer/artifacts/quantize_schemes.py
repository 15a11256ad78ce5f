"""The ways to store a linear layer in fewer bits, each in the words of compressed-tensors; and which groups divide it.

Knows no libraries. W8A8 and the 4-bit ones run in vLLM on the CPU and on GPUs; FP8 is for GPUs that have it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from adapters import Module
from trainer.errors import ArtifactError

GROUP_SIZES: Final = (128, 64, 32)
"""The largest first: its scales take the least room. The registry admits no others."""
_PER_WORD: Final = 8
"""Of 4 bits each."""


class Scheme(StrEnum):
    """What `--scheme` may say."""

    W8A8 = "w8a8"
    """Weights and activations in 8-bit integers: a scale for each output, and one for each token as it comes."""
    W4A16 = "w4a16"
    """Weights in 4 bits, rounded to nearest, in groups that share a scale. Activations as they are."""
    GPTQ = "gptq"
    """The same, each rounding made up for by the weights that are still to be rounded (arXiv 2210.17323)."""
    AWQ = "awq"
    """The same with a zero point, after the channels that matter most were scaled up (arXiv 2306.00978)."""
    FP8 = "fp8"
    """Weights and activations in 8-bit floats."""

    @property
    def is_grouped(self) -> bool:
        """Whether weights share scales in groups."""
        return self in {Scheme.W4A16, Scheme.GPTQ, Scheme.AWQ}

    @property
    def is_calibrated(self) -> bool:
        """Whether it looks at what the layers are given."""
        return self in {Scheme.GPTQ, Scheme.AWQ}

    @property
    def algorithm(self) -> str:
        """What the script is asked for."""
        return self.value if self.is_calibrated else "rtn"


@dataclass(frozen=True, slots=True)
class Arguments:
    """How weights and activations are stored, as compressed-tensors' QuantizationArgs."""

    weights: Mapping[str, Any]
    activations: Mapping[str, Any] | None


def arguments_of(scheme: Scheme, group_size: int | None) -> Arguments:
    """`group_size` is that of `choose_group_size`."""
    if scheme.is_grouped:
        weights = {"num_bits": 4, "type": "int", "symmetric": scheme is not Scheme.AWQ}
        return Arguments({**weights, "strategy": "group", "group_size": group_size}, None)
    plain = {"num_bits": 8, "type": "float" if scheme is Scheme.FP8 else "int", "symmetric": True}
    return Arguments({**plain, "strategy": "channel"}, {**plain, "strategy": "token", "dynamic": True})


def choose_group_size(scheme: Scheme, stated: int | None, modules: Mapping[str, Module]) -> int | None:
    """The stated size, or the largest that divides every layer; None for a scheme without groups.

    Raises:
        ArtifactError: it divides not every layer: the message names one that does; or the scheme has no groups, or
            zero points that can't be packed.
    """
    if not scheme.is_grouped:
        if stated is not None:
            raise ArtifactError(
                f"--group-size: {scheme.value} has a scale for each output, and no groups; leave it out."
            )
        return None
    _require_packable(scheme, modules)
    fitting = [size for size in GROUP_SIZES if not _undivided(modules, size)]
    if stated is None:
        if fitting:
            return fitting[0]
        name, width = _undivided(modules, GROUP_SIZES[-1])[0]
        raise ArtifactError(
            f"{name} is {width} wide, which no group size of {_listed(GROUP_SIZES)} divides: use --scheme w8a8."
        )
    if stated not in GROUP_SIZES:
        raise ArtifactError(f"--group-size {stated}: use one of {_listed(GROUP_SIZES)}, or auto.")
    if stated not in fitting:
        name, width = _undivided(modules, stated)[0]
        right = f"use --group-size {fitting[0]}" if fitting else "use --scheme w8a8"
        raise ArtifactError(f"--group-size {stated}: {name} is {width} wide, which is no multiple of it; {right}.")
    return stated


def _require_packable(scheme: Scheme, modules: Mapping[str, Module]) -> None:
    """Raises ArtifactError: zero points are packed by eight along a layer's outputs, and the registry takes no rest."""
    odd = ((name, module.out_features) for name, module in modules.items() if module.out_features % _PER_WORD)
    name, outputs = next(odd, ("", 0))
    if outputs and not arguments_of(scheme, None).weights["symmetric"]:
        raise ArtifactError(
            f"{name} has {outputs} outputs, no multiple of {_PER_WORD}, as {scheme.value} needs: use --scheme gptq."
        )


def _undivided(modules: Mapping[str, Module], size: int) -> list[tuple[str, int]]:
    """The layers that can't be cut into such groups, with their widths."""
    return [(name, module.in_features) for name, module in modules.items() if module.in_features % size]


def _listed(sizes: Iterable[int]) -> str:
    return ", ".join(map(str, sizes))
