"""Why an upload is refused: the closed set of codes, and how what is wrong is gathered into one refusal."""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import islice
from typing import Final

from adapters.errors import Problem, RefusedError, TooLargeError

_LISTED: Final = 10
"""A file that is wrong all over names this many of its faults, of each code."""
_MESSAGE_CHARACTERS: Final = 8000
"""All faults together: an answer that a person reads, whatever names a stranger made up."""


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
    NEEDS_CONVERSION = "needs_conversion"
    """DoRA, AdaLoRA, PiSSA …: no engine mixes these, and `lorikeet train convert` makes a plain LoRA of them."""
    BASE_MISMATCH = "base_mismatch"
    """The config names another base by its fingerprint."""
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
    BASE_INCOMPLETE = "base_incomplete"
    """A model was uploaded for a base of which too little is known: it was prepared before registries took models."""
    BASE_QUANTISED = "base_quantised"
    """A model was uploaded for a base whose weights are quantised: what it was made from is not what a server runs."""
    INDEX_MISMATCH = "index_mismatch"
    """A model's index does not name exactly the tensors of its shards, each in its own."""
    CONFIG_MISMATCH = "config_mismatch"
    """A model's config.json describes another architecture than the base's."""
    TENSOR_MISMATCH = "tensor_mismatch"
    """A model's tensors are not those of its base, by name and shape."""
    ALL_ZERO = "all_zero"
    """A model has no weight that is other than zero."""
    TOKENIZER_INVALID = "tokenizer_invalid"
    """A model's tokenizer is none, names ids that its vocabulary has not, or brings steps that its base's has not."""
    CHAT_TEMPLATE_MISMATCH = "chat_template_mismatch"
    """A model brings a chat template other than its base's: a template is a program, and it runs in the server."""
    PROBE_FAILED = "probe_failed"
    """The engine loaded it, and it did not answer soundly."""


_TOO_LARGE: Final = frozenset({Refusal.FILE_TOO_LARGE, Refusal.ARCHIVE_TOO_LARGE})


def refusal(code: Refusal, message: str) -> RefusedError:
    """The error to raise. `message` names the file, key or tensor, and what would be right."""
    kind = TooLargeError if code in _TOO_LARGE else RefusedError
    return kind(message, code=code.value)


def refuse_any(code: Refusal, problems: Iterable[str]) -> None:
    """Raise one refusal for all `problems`, if there are any; the first few are named."""
    faults = Faults()
    faults.add(code, problems)
    if faults:
        raise faults.refusal()


class Faults:
    """What is wrong with one upload, gathered as it is found. Memory is bounded however much that is."""

    def __init__(self) -> None:
        self._listed: dict[Refusal, list[str]] = {}
        self._unlisted: dict[Refusal, int] = {}
        self._headings: dict[Refusal, str] = {}

    def __bool__(self) -> bool:
        return bool(self._listed)

    def add(self, code: Refusal, messages: Iterable[str], *, heading: str | None = None) -> None:
        """Each message says what is wrong with what, and what would be right, without a full stop.

        `heading` says it of all of them, and is left out if there are none.
        """
        listed = self._listed.get(code, [])
        remaining = iter(messages)
        listed += islice(remaining, max(0, _LISTED - len(listed)))
        if listed:
            self._listed[code] = listed
            self._unlisted[code] = self._unlisted.get(code, 0) + sum(1 for _ in remaining)
            if heading is not None:
                self._headings[code] = heading

    def refusal(self) -> RefusedError:
        """The error to raise, with the faults in the order of the codes."""
        problems: list[Problem] = []
        left = _MESSAGE_CHARACTERS
        found = list(self._sentences())
        for problem in found:
            left -= len(problem.message) + 1
            if left < 0 and problems:
                break
            problems.append(problem)
        message = " ".join(problem.message for problem in problems)
        if omitted := len(found) - len(problems):
            message += f" (And {omitted} more.)"
        code = problems[0].code
        kind = TooLargeError if code in _TOO_LARGE else RefusedError
        return kind(message, code=code, problems=problems)

    def _sentences(self) -> Iterator[Problem]:
        for code in Refusal:
            listed, unlisted = self._listed.get(code, []), self._unlisted.get(code, 0)
            if heading := self._headings.get(code):
                yield Problem(code.value, f"{heading}.")
            for number, message in enumerate(listed, start=1):
                more = f" (and {unlisted} more)" if unlisted and number == len(listed) else ""
                yield Problem(code.value, f"{_capitalized(message)}{more}.")


def _capitalized(message: str) -> str:
    """Unless it begins with the name of a file."""
    return message if "_" in message.partition(" ")[0] else message[0].upper() + message[1:]
