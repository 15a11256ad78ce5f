"""The published schema: it says what there is and nothing that is secret, and the server keeps to it."""

import json
import re
from contextlib import ExitStack, suppress
from typing import Any, Self, TypeAlias

import httpx
import pytest
import requests
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from jsonschema import Draft202012Validator
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Err
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.app import ROUTERS
from server.asked import OURS
from server.gateway import PATHS
from tests.server.world import World


@pytest.fixture
def database() -> str:
    """It plays no part."""
    return "sqlite"


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 5
"""Of each route, such as it allows and such as it does not."""
CHAT = "/v1/chat/completions"
Asked: TypeAlias = "Case[Any]"
THERE = {"tenant": "zoo", "adapter": "keeper", "alias": "live", "number": 1, "grantee": "acme"}
"""What the paths of the admin API may name, so that not all they lead to is a 404."""


@pytest.fixture
def document(world: World) -> Any:
    with world.client(None) as client:
        response = client.get("/openapi.json")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    return response.json()


def body_schema(document: Any, path: str) -> Any:
    return document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]


def test_every_route_is_in_it_and_no_other(document: Any) -> None:
    served = {
        (route.path, method.lower())
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    described = {(path, method) for path, operations in document["paths"].items() for method in operations}
    assert described == served | {(path, "post") for path in PATHS}


def test_all_that_it_refers_to_is_there(document: Any) -> None:
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)))
    for reference in references:
        found = document
        for name in reference.removeprefix("#/").split("/"):
            found = found[name]
    assert references
    assert all(name in str(references) for name in document["components"]["schemas"])


def test_what_is_not_a_clients_to_set_is_no_field_and_adapter_is(document: Any) -> None:
    for path in PATHS:
        schema = body_schema(document, path)
        assert not OURS & schema["properties"].keys(), path
        assert "adapter" in schema["properties"]
        assert "model" not in schema.get("required", [])
    assert "messages" in body_schema(document, CHAT)["required"]


def test_the_ceilings_are_stated(document: Any) -> None:
    validator = Draft202012Validator(body_schema(document, CHAT)["properties"]["n"])
    assert [validator.is_valid(number) for number in (0, 1, 8, 9, None)] == [False, True, True, False, True]
    assert "64" in body_schema(document, "/v1/completions")["properties"]["prompt"]["description"]
    assert "256" in body_schema(document, "/v1/embeddings")["properties"]["input"]["description"]


def test_every_route_but_the_open_ones_needs_a_key_and_says_how_it_fails(document: Any) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert {"4XX", "5XX"} <= operation["responses"].keys()
            assert "422" not in operation["responses"]
            is_open = operation.get("security") == []
            assert is_open == (path in {"/healthz", "/readyz", "/openapi.json"})
    assert document["components"]["securitySchemes"].keys() == {"bearer", "x-api-key"}


def test_it_is_the_same_for_everybody_and_names_nobody(world: World, document: Any) -> None:
    world.publish("acme", "support", seed=1)
    for key in ("acme", "zoo-admin", "platform"):
        with world.client(key) as client:
            assert client.get("/openapi.json").json() == document
    assert not {"acme", "zoo", "tiny"} & set(re.findall(r"\w+", json.dumps(document["paths"]["/admin/v1/tenants"])))


def test_whatever_is_asked_the_server_keeps_to_its_schema_and_is_as_before(world: World, document: Any) -> None:
    world.publish("acme", "support", seed=1)
    world.publish("zoo", "keeper", seed=2)
    golden = [world.ask(name, temperature=0).content for name in ("support", None)]
    described = schemathesis.openapi.from_dict(document)
    with Asker(world) as asker:
        for found in described.get_all_operations():
            assert not isinstance(found, Err), found.err()
            operation = found.ok()
            asker.ask_at_random(operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
            with suppress(Unsatisfiable):  # of a route that takes nothing, nothing is wrong
                asker.ask_at_random(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
    assert [world.ask(name, temperature=0).content for name in ("support", None)] == golden
    assert asker.well_asked & PATHS
    assert asker.well_asked >= {"/metrics", "/v1/models", "/admin/v1/tenants"}
    assert set(world.residency().values()) == {0}
    assert world.engine.health() == "ready"


class Asker:
    """Asks what is drawn, and checks the answers: inference as acme, all else as the platform."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._opened = ExitStack()
        self.well_asked: set[str] = set()
        """The paths that had something to say."""

    def __enter__(self) -> Self:
        clients = {key: self._opened.enter_context(self._world.client(key)) for key in ("acme", "platform")}
        self._clients: dict[str, httpx.Client] = clients
        self._session = self._opened.enter_context(requests.Session())
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def ask_at_random(self, cases: st.SearchStrategy[Asked]) -> None:
        """Draw cases, a part of them about what is there."""

        @settings(
            max_examples=EXAMPLES,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        @given(case=cases, is_there=st.booleans())
        def ask(case: Asked, is_there: bool) -> None:  # noqa: FBT001  — drawn
            self._ask(case, is_there=is_there)

        ask()

    def _ask(self, case: Asked, *, is_there: bool) -> None:
        is_inference = case.operation.path in PATHS
        if is_there and is_inference and isinstance(case.body, dict):
            case.body = {**case.body, "adapter": "support", "model": None}
        elif is_there and case.path_parameters:
            case.path_parameters |= {name: value for name, value in THERE.items() if name in case.path_parameters}
        client = self._clients["acme" if is_inference or case.operation.path == "/v1/models" else "platform"]
        response = case.call(
            base_url=self._world.live.base_url, session=self._session, headers=dict(client.headers), timeout=30
        )
        case.validate_response(response, checks=CHECKS)
        if response.status_code < 300:
            self.well_asked.add(case.operation.path)
