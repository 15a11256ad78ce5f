"""What a publisher says of a version: origin, parents, tags, note. Bounded, and kept as it is."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection

from adapters.errors import InvalidError
from adapters.limits import MAX_ORIGIN_BYTES
from adapters.lookups import find_adapter, find_version
from adapters.names import RULE, Reference, is_name, quoted

MAX_TAGS: Final = 32
MAX_NOTE_LENGTH: Final = 2000
MAX_PARENTS: Final = 32
MAX_DEPTH: Final = 32
"""Of an origin's lists and mappings in one another: what stores and reads JSON takes each of them on its stack."""


def require_origin(origin: Mapping[str, Any]) -> dict[str, Any]:
    """`origin` as JSON keeps it. Raises InvalidError `invalid_origin`."""
    _require_shallow(origin)
    try:
        text = json.dumps(dict(origin), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidError(f"The origin can't be kept as JSON: {quoted(str(error))}.", code="invalid_origin") from error
    if len(text) > MAX_ORIGIN_BYTES:
        raise InvalidError(f"The origin has more than {MAX_ORIGIN_BYTES} bytes of JSON.", code="invalid_origin")
    stored: dict[str, Any] = json.loads(text)
    return stored


def require_tags(tags: Sequence[str]) -> list[str]:
    """Each tag once, sorted. Raises InvalidError `invalid_tag`."""
    for tag in tags:
        if not is_name(tag):
            raise InvalidError(f"{quoted(tag)} can't be a tag: use {RULE}.", code="invalid_tag")
    if len(set(tags)) > MAX_TAGS:
        raise InvalidError(f"A version has at most {MAX_TAGS} tags.", code="invalid_tag")
    return sorted(set(tags))


def require_note(note: str) -> str:
    """`note` itself. Raises InvalidError `invalid_note`."""
    is_text = len(note) <= MAX_NOTE_LENGTH and all(character.isprintable() or character == "\n" for character in note)
    if not is_text:
        raise InvalidError(f"A note is at most {MAX_NOTE_LENGTH} printable characters.", code="invalid_note")
    return note


def require_parents(connection: Connection, tenant: str, parents: Sequence[str]) -> list[str]:
    """The full names of versions of the tenant's, each once.

    Raises:
        InvalidError: `invalid_parent`: one names no version, or another tenant's; or there are too many.
        NotFoundError: `adapter_not_found` or `version_not_found`.
    """
    references = dict.fromkeys(_reference(tenant, parent) for parent in parents)
    if len(references) > MAX_PARENTS:
        raise InvalidError(f"A version has at most {MAX_PARENTS} parents.", code="invalid_parent")
    for adapter, number in references:
        find_version(connection, find_adapter(connection, tenant, adapter), number)
    return [f"{tenant}/{adapter}@{number}" for adapter, number in references]


def _reference(tenant: str, parent: str) -> tuple[str, int]:
    reference = Reference.parse(parent)
    if not isinstance(reference.selector, int) or reference.tenant not in {None, tenant}:
        raise InvalidError(
            f"{quoted(parent)} can't be a parent: name a version of the same tenant, NAME@VERSION.",
            code="invalid_parent",
        )
    return reference.adapter, reference.selector


def _require_shallow(origin: object) -> None:
    """Without recursion, which is what a deep one would break."""
    waiting = [(origin, 1)]
    while waiting:
        value, depth = waiting.pop()
        if not isinstance(value, (Mapping, list, tuple)):
            continue
        if depth > MAX_DEPTH:
            raise InvalidError(f"The origin is nested more than {MAX_DEPTH} deep.", code="invalid_origin")
        inner = value.values() if isinstance(value, Mapping) else value
        waiting.extend((one, depth + 1) for one in inner)
