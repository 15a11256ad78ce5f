"""JSON that every parser reads alike: what a lenient one would repair or guess at, is an error."""

import json
from collections import Counter
from typing import Any, NoReturn

from adapters.names import quoted


def parse_strictly(raw: bytes) -> Any:  # noqa: ANN401  — JSON
    """The value of one JSON text in UTF-8.

    Raises:
        ValueError: a byte order mark, broken UTF-8, a key twice, NaN or Infinity, nesting without end, or no JSON. The
            text is a sentence without its full stop.
    """
    if raw.startswith(b"\xef\xbb\xbf"):
        raise ValueError("it begins with a byte order mark; write plain UTF-8")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON (line {error.lineno}, column {error.colno}: {error.msg})") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {quoted(twice)} occurs twice")
    return built


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
