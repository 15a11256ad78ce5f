"""Which fields a route of the engine's knows, from its own schema: what no release of it reads is not passed on."""

from collections.abc import Mapping
from typing import Any, Final

from server.engine.protocol import Engine

COMPONENTS: Final = "#/components/schemas/"
UNIONS: Final = ("anyOf", "oneOf", "allOf")


class KnownFields:
    """Of an engine that has started."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._of: dict[str, frozenset[str] | None] = {}

    def of(self, path: str) -> frozenset[str] | None:
        """The fields that a body for this path may have; None: the engine has no such route, or says nothing of it."""
        if path not in self._of:
            schema = self._engine.openapi()
            body = request_schema(schema, path)
            names = frozenset(name for part in parts_of(schema, body or {}) for name in part.get("properties", {}))
            self._of[path] = names or None
        return self._of[path]


def request_schema(schema: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """What a POST to `path` takes as JSON, as the engine's schema has it; None: there is no such route."""
    operation = schema.get("paths", {}).get(path, {}).get("post")
    if operation is None:
        return None
    body: dict[str, Any] = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    found: dict[str, Any] = body.get("schema", {})
    return found


def parts_of(schema: Mapping[str, Any], part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The objects that `part` may be: itself, or those that it refers to or chooses from."""
    if "$ref" in part:
        name = part["$ref"].removeprefix(COMPONENTS)
        return parts_of(schema, schema["components"]["schemas"][name])
    chosen = [choice for union in UNIONS for choice in part.get(union, ())]
    return [found for choice in chosen for found in parts_of(schema, choice)] if chosen else [part]
