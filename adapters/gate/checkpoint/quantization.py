"""The quantization_config of a checkpoint in fewer bits: one of a few schemes, and the tensors that follow from each.

What is stored is written anew from what is understood, in the keys that every version of compressed-tensors reads, so
that a library's own additions never reach the engine. Invariant: no name in it is a pattern, and none is looked up.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from adapters.names import quoted
from adapters.refusals import Faults, Refusal
from adapters.values import Base

KEY: Final = "quantization_config"
FLOATS: Final = frozenset({"F32", "F16", "BF16"})
HEAD: Final = "lm_head"

Format = Literal["int-quantized", "float-quantized", "pack-quantized"]
Layout = Mapping[str, tuple[tuple[int, ...], frozenset[str]]]
"""Every tensor → its shape, and the dtypes that it may have."""

_GROUPS: Final = (32, 64, 128)
_WORD_BITS: Final = 32
_PACKED_BITS: Final = 4
_PER_WORD: Final = _WORD_BITS // _PACKED_BITS
_KINDS: Final[Mapping[tuple[str, int], Format]] = {
    ("int", 8): "int-quantized",
    ("float", 8): "float-quantized",
    ("int", _PACKED_BITS): "pack-quantized",
}
_DTYPES: Final[Mapping[Format, str]] = {"int-quantized": "I8", "float-quantized": "F8_E4M3"}

_TOP_KEYS: Final = frozenset({"quant_method", "format", "quantization_status", "config_groups", "ignore"})
_GROUP_KEYS: Final = frozenset({"targets", "weights", "input_activations", "format"})
_ARGUMENT_KEYS: Final = frozenset({"num_bits", "type", "symmetric", "strategy", "group_size", "dynamic", "actorder"})
_MEANINGLESS: Final = frozenset(
    {"version", "global_compression_ratio", "observer", "observer_kwargs", "scale_dtype", "zp_dtype"}
)
"""How it came about, or what the tensors say themselves."""
_FUSED: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that vLLM makes one of, with one way of storing it: it starts on no model that keeps a part of them."""
_IN_PLACE: Final = ("weight", "static", None)
"""Orders of quantising that leave the columns where they were; any other would need an index beside the weights."""
_PER_TOKEN: Final[Mapping[str, Any]] = {"num_bits": 8, "symmetric": True, "strategy": "token", "dynamic": True}


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a checkpoint's linear layers are stored: 8 bits a weight, or 4 in groups that share a scale."""

    format: Format
    is_symmetric: bool
    group_size: int | None
    """None: one scale for each of a layer's outputs."""
    plain: frozenset[str]
    """The linear layers that are not quantised; the head never is."""

    def written(self) -> dict[str, Any]:
        """The quantization_config to store."""
        kind, bits = next(key for key, value in _KINDS.items() if value == self.format)
        strategy = "channel" if self.group_size is None else "group"
        weights = {"num_bits": bits, "type": kind, "symmetric": self.is_symmetric, "strategy": strategy}
        weights |= {"dynamic": False} | ({} if self.group_size is None else {"group_size": self.group_size})
        has_activations = self.format != "pack-quantized"
        group = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": {**_PER_TOKEN, "type": kind} if has_activations else None,
            "output_activations": None,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": self.format,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": sorted({HEAD, *self.plain}),
        }

    def layout(self, shapes: Mapping[str, tuple[int, ...]], base: Base) -> Layout:
        """What must be there, where an unquantised checkpoint has tensors of these shapes."""
        quantised = {f"{module}.weight": module for module in base.modules.keys() - self.plain}
        expected: dict[str, tuple[tuple[int, ...], frozenset[str]]] = {}
        for name, shape in shapes.items():
            expected |= self._of_layer(quantised[name], shape) if name in quantised else {name: (shape, FLOATS)}
        return expected

    def indivisible(self, base: Base) -> Iterator[str]:
        """The layers that can't be packed in such groups. Zero points are packed along the outputs."""
        for module in sorted(base.modules.keys() - self.plain) if self.group_size else ():
            sizes = base.modules[module]
            if sizes.in_features % (self.group_size or 1):
                yield (
                    f"{quoted(module)} is {sizes.in_features} wide, which is no multiple of the group size "
                    f"{self.group_size}: name it in 'ignore', or use a size that divides it"
                )
            if sizes.out_features % _PER_WORD and not self.is_symmetric:
                yield (
                    f"{quoted(module)} has {sizes.out_features} outputs, which is no multiple of {_PER_WORD}: name it "
                    "in 'ignore', or use a symmetric scheme"
                )

    def _of_layer(self, module: str, shape: tuple[int, ...]) -> Layout:
        outputs, inputs = shape
        if self.group_size is None:
            return {
                f"{module}.weight": (shape, frozenset({_DTYPES[self.format]})),
                f"{module}.weight_scale": ((outputs, 1), FLOATS),
            }
        groups, words = inputs // self.group_size, frozenset({"I32"})
        zero_point = {f"{module}.weight_zero_point": ((outputs // _PER_WORD, groups), words)}
        return {
            f"{module}.weight_packed": ((outputs, inputs // _PER_WORD), words),
            f"{module}.weight_scale": ((outputs, groups), FLOATS),
            f"{module}.weight_shape": ((2,), frozenset({"I64"})),
            **({} if self.is_symmetric else zero_point),
        }


def read_quantization(stated: object, base: Base, *, faults: Faults) -> Quantization | None:
    """What a config.json's quantization_config means; None if there is none.

    None as well, with `unsupported_config` in `faults`, if it is none of ours.
    """
    if stated is None or stated == {}:
        return None
    wrong = list(_wrong(stated, base))
    if not wrong and isinstance(stated, dict):
        quantization = _meaning(stated)
        wrong = list(quantization.indivisible(base))
        if not wrong:
            return quantization
    faults.add(Refusal.UNSUPPORTED_CONFIG, (f"in config.json's quantization_config, {each}" for each in wrong))
    return None


def _meaning(stated: dict[str, Any]) -> Quantization:
    ((_, group),) = stated["config_groups"].items()
    weights = group["weights"]
    return Quantization(
        format=_KINDS[weights["type"], weights["num_bits"]],
        is_symmetric=weights["symmetric"],
        group_size=weights.get("group_size"),
        plain=frozenset(stated["ignore"]) - {HEAD},
    )


# --- what may be said -------------------------------------------------------------------------------------------------


def _wrong(stated: object, base: Base) -> Iterator[str]:
    if not isinstance(stated, dict) or stated.get("quant_method") != "compressed-tensors":
        yield "'quant_method' must be 'compressed-tensors': make it with `lorikeet train quantize`"
        return
    yield from _strangers(stated, _TOP_KEYS, "")
    if stated.get("quantization_status") != "compressed":
        yield "'quantization_status' must be 'compressed'"
    groups, ignored = stated.get("config_groups"), stated.get("ignore")
    if not (isinstance(ignored, list) and all(isinstance(name, str) for name in ignored)):
        yield "'ignore' must be a list of the layers that are not quantised"
    else:
        for name in sorted(set(ignored) - base.modules.keys() - {HEAD}):
            yield f"'ignore' names {quoted(name)}, which is no linear layer of the base; patterns can't be used"
        if HEAD not in ignored:
            yield f"'ignore' must name {quoted(HEAD)}: a quantised head is not served"
        yield from _parted(frozenset(ignored), base)
    if not (isinstance(groups, dict) and len(groups) == 1 and isinstance(next(iter(groups.values())), dict)):
        yield "'config_groups' must have one group, for all linear layers"
        return
    yield from _wrong_group(next(iter(groups.values())), stated.get("format"))


def _parted(ignored: frozenset[str], base: Base) -> Iterator[str]:
    """Layers of which `ignore` names some, where it must name all or none."""
    for name in sorted(ignored & base.modules.keys()):
        parent, _, last = name.rpartition(".")
        fused = (f"{parent}.{each}" for names in _FUSED if last in names for each in names)
        if missing := [each for each in fused if each in base.modules and each not in ignored]:
            others = " and ".join(map(quoted, missing))
            yield f"'ignore' names {quoted(name)} without {others}: vLLM makes one layer of them; name all, or none"


def _wrong_group(group: dict[str, Any], stated_format: object) -> Iterator[str]:
    yield from _strangers(group, _GROUP_KEYS, "the group's ")
    if group.get("targets") != ["Linear"]:
        yield "the group's 'targets' must be ['Linear']"
    weights = group.get("weights")
    if not isinstance(weights, dict):
        yield "the group must say how its 'weights' are stored"
        return
    kind, bits = weights.get("type"), weights.get("num_bits")
    expected = _KINDS.get((kind, bits)) if isinstance(kind, str) and type(bits) is int else None
    if expected is None:
        yield "the weights must be 8-bit 'int', 8-bit 'float' or 4-bit 'int'"
        return
    if stated_format != expected or group.get("format", expected) not in (None, expected):
        yield f"'format' must be {quoted(expected)} for such weights"
    yield from _wrong_weights(weights, expected)
    yield from _wrong_activations(group.get("input_activations"), kind if expected in _DTYPES else None)


def _wrong_weights(weights: dict[str, Any], layout: Format) -> Iterator[str]:
    yield from _strangers(weights, _ARGUMENT_KEYS, "the weights' ")
    if weights.get("dynamic", False) is not False:
        yield "the weights' 'dynamic' must be false"
    if weights.get("actorder") not in _IN_PLACE:
        yield "the weights' 'actorder' must be 'weight', 'static' or null: reordered columns are not served"
    if layout in _DTYPES:
        if weights.get("strategy") != "channel" or weights.get("group_size") is not None:
            yield "8-bit weights must have the strategy 'channel', without a 'group_size'"
        if weights.get("symmetric") is not True:
            yield "8-bit weights must be 'symmetric'"
        return
    size = weights.get("group_size")
    if weights.get("strategy") != "group" or not (type(size) is int and size in _GROUPS):
        sizes = ", ".join(map(str, _GROUPS))
        yield f"4-bit weights must have the strategy 'group' and a 'group_size' of one of {sizes}"
    if not isinstance(weights.get("symmetric"), bool):
        yield "the weights' 'symmetric' must be true or false"


def _wrong_activations(activations: object, kind: str | None) -> Iterator[str]:
    """`kind` is None where the activations stay as they are."""
    if kind is None:
        if activations is not None:
            yield "with 4-bit weights, 'input_activations' must be null"
        return
    if not isinstance(activations, dict):
        yield "with 8-bit weights, 'input_activations' must say how they are rounded"
        return
    yield from _strangers(activations, _ARGUMENT_KEYS, "the activations' ")
    for key, right in {**_PER_TOKEN, "type": kind}.items():
        if activations.get(key) != right or type(activations.get(key)) is not type(right):
            yield f"the activations' {quoted(key)} must be {right!r}"
    if not (activations.get("group_size") is None and activations.get("actorder") is None):
        yield "the activations must have neither a 'group_size' nor an 'actorder'"


def _strangers(stated: Mapping[str, Any], known: frozenset[str], whose: str) -> Iterator[str]:
    for key in sorted(stated.keys() - known - _MEANINGLESS):
        if stated[key] not in (None, False, "", [], {}):
            yield f"{whose}{quoted(key)} must be left out"
