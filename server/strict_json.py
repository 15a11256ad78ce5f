"""JSON from strangers: plain, finite UTF-8, and neither so wide nor so deep that reading it takes long.

What is too much is found by counting bytes before anything is parsed: a megabyte of `[],[],…` is a third of a million
lists. Knows no fields.
"""

import json
import math
import re
from itertools import accumulate
from typing import Any, Final, NoReturn

from server.errors import BadRequestError

MAX_PARTS: Final = 100_000
"""Arrays, objects and commas. A prompt of token ids is as long as a context; no chat comes near."""
MAX_DEPTH: Final = 100
"""Below what Python's own parser, ours and vLLM's, holds."""

_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+(?:"|\Z)', re.DOTALL)
"""A string, or what is left of one. It always matches and never goes back: linear, whatever the bytes."""
_OPENING, _CLOSING, _COMMA = b"[{", b"]}", b","
_NOT_STRUCTURE = bytes(set(range(256)) - set(_OPENING + _CLOSING + _COMMA))
_STEPS = {**dict.fromkeys(_OPENING, 1), **dict.fromkeys(_CLOSING, -1)}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_object(body: bytes) -> dict[str, Any]:
    """The object that `body` is.

    Raises:
        BadRequestError: `invalid_json`: too complex, no object, or not strictly JSON, as are NaN, lone surrogates and
            numbers that Python can't hold.
    """
    _check_structure(body)
    try:
        fields = json.loads(body.decode(), parse_constant=_refuse_constant, parse_float=_finite)
        if _SURROGATE.search(body):  # half a pair would be found only when it is written again
            json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadRequestError("The body is not valid JSON in UTF-8.", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise BadRequestError("The body must be a JSON object.", code="invalid_json")
    return fields


def depth_of(text: bytes) -> int:
    """How deep brackets and braces are nested in `text`, wherever they stand."""
    structure = text.translate(None, _NOT_STRUCTURE + _COMMA)
    return max(accumulate((_STEPS[byte] for byte in structure), initial=0))


def _check_structure(body: bytes) -> None:
    if sum(body.count(byte) for byte in (b"[", b"{", b",")) <= MAX_DEPTH:
        return  # too few to be wide or deep, also with those that stand inside strings
    structure = _STRING.sub(b"", body).translate(None, _NOT_STRUCTURE)
    if len(structure.translate(None, _CLOSING)) > MAX_PARTS:
        raise BadRequestError(f"The body has more than {MAX_PARTS} lists, objects and items.", code="invalid_json")
    if depth_of(structure) > MAX_DEPTH:
        raise BadRequestError(f"The body is nested more than {MAX_DEPTH} deep.", code="invalid_json")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is more than a float holds")
    return value


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
