"""Why an upload is refused: the closed set of codes, and how a refusal is raised."""

from collections.abc import Iterable
from enum import StrEnum
from itertools import islice
from typing import Final

from adapters.errors import RefusedError, TooLargeError

_LISTED: Final = 10
"""A file that is wrong all over names this many of its faults."""


class Refusal(StrEnum):
    """The gate's codes, in the order in which the gate asks."""

    FILE_TOO_LARGE = "file_too_large"
    """A file holds more bytes than the limits allow."""
    ARCHIVE_INVALID = "archive_invalid"
    """Not a .tar, .tar.gz or .zip, or a damaged, encrypted or exotic one."""
    ARCHIVE_TOO_LARGE = "archive_too_large"
    """The archive unpacks to more bytes than the limits allow."""
    TOO_MANY_MEMBERS = "too_many_members"
    """Far more files than the two that an adapter has, or far more headers than files."""
    ILLEGAL_MEMBER_PATH = "illegal_member_path"
    """A member's name is absolute, climbs out, or holds characters that a plain name has not."""
    ILLEGAL_MEMBER_TYPE = "illegal_member_type"
    """A member is a folder, a link, a device: anything but a plain file."""
    UNEXPECTED_FILE = "unexpected_file"
    """A file that is not part of an adapter."""
    DUPLICATE_FILE = "duplicate_file"
    """The same name twice."""
    MISSING_FILE = "missing_file"
    """adapter_config.json or adapter_model.safetensors is not there."""
    UNSUPPORTED_FORMAT = "unsupported_format"
    """The weights are a pickle, a GGUF, …: not safetensors."""
    INVALID_CONFIG = "invalid_config"
    """adapter_config.json is not one strict JSON object with the keys that every LoRA has."""
    UNSUPPORTED_CONFIG = "unsupported_config"
    """The config asks for something besides plain LoRA on linear layers."""
    INVALID_RANK = "invalid_rank"
    """`r` is not a whole number of at least 1."""
    RANK_TOO_HIGH = "rank_too_high"
    """`r` is above the registry's `max_rank`."""
    INVALID_ALPHA = "invalid_alpha"
    """`lora_alpha` is not a finite number above 0."""
    SCALE_TOO_LARGE = "scale_too_large"
    """alpha / r (or alpha / √r) is beyond anything that was ever trained."""
    SAFETENSORS_INVALID = "safetensors_invalid"
    """The header can't be, or does not describe this file to its last byte."""
    UNSUPPORTED_DTYPE = "unsupported_dtype"
    """A tensor is not F32, F16 or BF16."""
    INVALID_TENSOR_NAME = "invalid_tensor_name"
    """A tensor is not called `base_model.model.<module>.lora_A.weight` or `….lora_B.weight`."""
    MISSING_PAIR = "missing_pair"
    """A module has only one of its two tensors, or there is no module at all."""
    UNKNOWN_MODULE = "unknown_module"
    """The base has no such linear layer, or the config's target_modules do not name it."""
    SHAPE_MISMATCH = "shape_mismatch"
    """A tensor's shape does not follow from the rank and the base's layer."""
    NOT_FINITE = "not_finite"
    """A weight is NaN or infinite, or becomes so in bfloat16 or when scaled."""
    GAIN_TOO_LARGE = "gain_too_large"
    """A module multiplies its input with more than any trained adapter does, so that a sum may become infinite."""
    PROBE_FAILED = "probe_failed"
    """The engine loaded it, and it did not answer soundly."""


_TOO_LARGE: Final = frozenset({Refusal.FILE_TOO_LARGE, Refusal.ARCHIVE_TOO_LARGE})


def refusal(code: Refusal, message: str) -> RefusedError:
    """The error to raise. `message` names the file, key or tensor, and what would be right."""
    kind = TooLargeError if code in _TOO_LARGE else RefusedError
    return kind(message, code=code.value)


def refuse_any(code: Refusal, problems: Iterable[str]) -> None:
    """Raise one refusal for all `problems`, if there are any; the first few are named."""
    remaining = iter(problems)
    listed = list(islice(remaining, _LISTED))
    if listed:
        unlisted = sum(1 for _ in remaining)
        more = f" (and {unlisted} more)" if unlisted else ""
        message = "; ".join(listed) + f"{more}."
        raise refusal(code, message[0].upper() + message[1:])
