"""GET /openapi.json: the whole API in OpenAPI's terms, for everybody; it holds nothing that is a tenant's.

The routes of ours describe themselves. Those of inference are described by the engine: what no client may set is taken
out, and what this server adds and refuses is put in.
"""

import json
from collections.abc import Iterable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi

from server.answer import ADAPTER_HEADER, IGNORED_HEADER, WARNING_HEADER
from server.asked import OURS
from server.ceilings import MAX_CHOICES, MAX_GENERATIONS, MAX_INPUTS
from server.gateway import PATHS
from server.known import COMPONENTS, parts_of, request_schema
from server.parts import PartsDep
from server.ports import is_at

OPEN: Final = frozenset({"/healthz", "/readyz", "/openapi.json"})
"""Paths that need no key."""
ENGINE_PREFIX: Final = "engine."
"""Before the names of the engine's schemas, so that none is taken for one of ours."""
ERROR: Final = {
    "description": "Refused or failed. `code` is for programs, `message` for people; `param` names a field.",
    "content": {"application/json": {"schema": {"$ref": f"{COMPONENTS}Error"}}},
    "headers": {"retry-after": {"description": "Seconds, with 429 and 503.", "schema": {"type": "string"}}},
}
ERROR_SCHEMA: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
NAME: Final = {
    "type": ["string", "null"],
    "description": "The adapter to ask: `support`, `support@3` (a version), `support@canary` (an alias), or "
    "`owner/support` (one that was granted). Null or left out: the tenant's default adapter, or else the base.",
}
MODEL: Final = {
    "type": ["string", "null"],
    "description": "The base's name, or an adapter as in `adapter`, for clients that can't add a field.",
}
BODY: Final = (
    "Fields beside these are not passed on, and the answer's x-lorikeet-ignored names them. Refused with 400 "
    f"unsupported_parameter, unless null, false, 0 or empty: {', '.join(sorted(OURS))}."
)
CHOICES: Final = {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_CHOICES}
CEILINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "n": CHOICES,
    "best_of": CHOICES,
    "prompt": {"description": f"{MAX_GENERATIONS} prompts at most, each counted `n` times."},
    "input": {"description": f"{MAX_INPUTS} texts or items at most."},
}
"""field → what stands over the engine's own words."""
HEADERS: Final = {
    "x-request-id": "The request's id, to ask about it.",
    ADAPTER_HEADER: "The version that answered, `acme/support@3`; missing: the base.",
    WARNING_HEADER: "What is not as it was when the adapter was trained.",
    IGNORED_HEADER: "The request's fields that this route does not know: they were not passed on.",
}
SECURITY: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key: `lk-…`."},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same, as Anthropic's."},
}

router = APIRouter()


@router.get("/openapi.json")
async def openapi_document(request: Request, parts: PartsDep) -> Response:
    """This document."""
    app: FastAPI = request.app
    is_admin_port: bool | None = getattr(request.state, "is_admin_port", None)
    name = f"openapi_page_{is_admin_port}"
    if not hasattr(app.state, name):  # made once: it is long, and anybody may ask for it
        page = await parts.threads.write_out(partial(_page, app, parts.engine.openapi(), is_admin_port))
        setattr(app.state, name, page)
    return Response(getattr(app.state, name), media_type="application/json")


def describe(app: FastAPI, engine: Mapping[str, Any]) -> dict[str, Any]:
    """The routes of `app`, and those of inference as the `engine` describes them."""
    document: dict[str, Any] = get_openapi(title="Lorikeet", version=version("lorikeet"), routes=app.routes)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _settle(operation, is_open=path in OPEN)
    schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Error"] = ERROR_SCHEMA

    theirs = _prefixed(engine)
    inference = {path: _inference(theirs, path) for path in sorted(PATHS) if request_schema(theirs, path) is not None}
    schemas |= {name: theirs["components"]["schemas"][name] for name in sorted(_reached(theirs, inference))}
    document["paths"] |= inference
    document["components"]["securitySchemes"] = SECURITY
    document["security"] = [{name: []} for name in SECURITY]
    return document


def _page(app: FastAPI, engine: Mapping[str, Any], is_admin_port: bool | None) -> bytes:  # noqa: FBT001  — of three values
    document = describe(app, engine)
    paths = {path: told for path, told in document["paths"].items() if is_at(path, is_admin_port=is_admin_port)}
    kept = _reached(document, paths)
    schemas = {name: schema for name, schema in document["components"]["schemas"].items() if name in kept}
    document |= {"paths": paths, "components": {**document["components"], "schemas": schemas}}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _settle(operation: dict[str, Any], *, is_open: bool) -> None:
    """What FastAPI can't know: errors of ours, and who needs no key."""
    operation["responses"].pop("422", None)
    operation["responses"] |= {"4XX": ERROR, "5XX": ERROR}
    if is_open:
        operation["security"] = []


def _inference(engine: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The operations of one path."""
    theirs = engine["paths"][path]["post"]
    taken = [_client_schema(part) for part in parts_of(engine, request_schema(engine, path) or {})]
    body = taken[0] if len(taken) == 1 else {"anyOf": taken}
    answers = theirs["responses"]["200"]["content"]
    headers = {name: {"description": words, "schema": {"type": "string"}} for name, words in HEADERS.items()}
    operation = {
        "summary": theirs.get("summary", path),
        "tags": ["inference"],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"description": "The answer.", "headers": headers, "content": answers}},
    }
    _settle(operation, is_open=False)
    return {"post": operation}


def _client_schema(part: Mapping[str, Any]) -> dict[str, Any]:
    """What a client may send of what the engine takes."""
    fields = {name: field for name, field in part.get("properties", {}).items() if name not in OURS}
    over = {name: _over(fields[name], words) for name, words in CEILINGS.items() if name in fields}
    required = [name for name in part.get("required", []) if name not in OURS | {"model"}]
    kept = {name: words for name, words in part.items() if name not in {"properties", "required"}}
    properties = {**fields, **over, "adapter": NAME, "model": MODEL}
    demanded = {"required": required} if required else {}
    return {**kept, "description": BODY, "properties": properties, **demanded, "additionalProperties": True}


def _over(field: Mapping[str, Any], words: Mapping[str, Any]) -> dict[str, Any]:
    return dict(words) if "type" in words else {**field, **words}


def _reached(engine: Mapping[str, Any], part: object) -> set[str]:
    """The names of the engine's schemas that `part` needs, and those that they need."""
    schemas, reached = engine.get("components", {}).get("schemas", {}), set[str]()
    waiting = list(_references(part))
    while waiting:
        name = waiting.pop()
        if name in schemas and name not in reached:
            reached.add(name)
            waiting.extend(_references(schemas[name]))
    return reached


def _references(part: object) -> Iterable[str]:
    match part:
        case str() if part.startswith(COMPONENTS):
            yield part.removeprefix(COMPONENTS)
        case dict():
            for inner in part.values():
                yield from _references(inner)
        case list():
            for inner in part:
                yield from _references(inner)


def _prefixed(engine: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's own document with its schemas under the names that they have here."""
    schemas = engine.get("components", {}).get("schemas", {})
    renamed = {ENGINE_PREFIX + name: _renamed(schema) for name, schema in schemas.items()}
    return {"paths": _renamed(engine["paths"]), "components": {"schemas": renamed}}


def _renamed(part: Any) -> Any:  # noqa: ANN401  — JSON
    match part:
        case str() if part.startswith(COMPONENTS):
            return COMPONENTS + ENGINE_PREFIX + part.removeprefix(COMPONENTS)
        case dict():
            return {name: _renamed(inner) for name, inner in part.items()}
        case list():
            return [_renamed(inner) for inner in part]
        case _:
            return part
