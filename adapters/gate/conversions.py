"""What no engine mixes and the trainer can turn into a plain LoRA: told by the config's words or the tensors' names."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from adapters.names import quoted

PLAIN_INITIALISATIONS: Final = ("gaussian", "orthogonal", "eva", "mica")
"""Of init_lora_weights: these set only A and B themselves. What is no word (true, false, null) does so, too."""

_COMMAND: Final = "run `lorikeet train convert FOLDER --to lora --out PLAIN` and upload PLAIN"
_CHANGING: Final = re.compile(r"pissa(?:_niter_[0-9]{1,4})?|olora|corda|loftq|lora_ga")
_DORA: Final = re.compile(r".*\.lora_magnitude_vector(?:\.weight)?")
_ADALORA: Final = re.compile(r".*\.(?:lora_[ABE]|ranknum)")
"""AdaLoRA's A and B have no `.weight` after them."""


def is_adalora(stated: Mapping[str, Any]) -> bool:
    """Whether the config is AdaLoRA's, whose further keys mean nothing to LoRA."""
    return stated.get("peft_type") == "ADALORA"


def is_changing(initialisation: object) -> bool:
    """Whether a value of init_lora_weights names a method that takes the first A and B out of the base's weights."""
    return isinstance(initialisation, str) and _CHANGING.fullmatch(initialisation.lower()) is not None


def convertible_config(stated: Mapping[str, Any]) -> Iterator[str]:
    """What the config asks for and only a conversion gives."""
    if is_adalora(stated):
        yield f"'peft_type' is 'ADALORA', and the engine does not read its ranks and singular values: {_COMMAND}"
    if stated.get("use_dora") is True:
        yield f"'use_dora' is true, and the engine does not read DoRA's magnitudes: {_COMMAND}"
    initialisation = stated.get("init_lora_weights")
    if is_changing(initialisation):
        yield (
            f"'init_lora_weights' is {quoted(str(initialisation))}, which changed the base's own weights, so that the"
            f" adapter does not fit the base as it was: {_COMMAND}; it takes the residual into account, or refuses"
        )


def convertible_tensors(names: Iterable[str]) -> Iterator[str]:
    """Which of the misnamed tensors a conversion would understand: a sentence for each method."""
    names = tuple(names)
    for pattern, what in ((_DORA, "DoRA's magnitudes"), (_ADALORA, "AdaLoRA's")):
        found = [name for name in names if pattern.fullmatch(name)]
        if found:
            yield f"{quoted(found[0])} is one of {len(found)} tensors that are {what}: {_COMMAND}"


def is_convertible(name: str) -> bool:
    """Whether `convertible_tensors` speaks of it."""
    return _DORA.fullmatch(name) is not None or _ADALORA.fullmatch(name) is not None
