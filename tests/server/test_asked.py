"""Bodies that are refused before anything is looked up, and those that are understood."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.asked import OURS, Asked
from server.ceilings import SCHEMAS
from server.errors import BadRequestError
from tests.server.world import World

COUNTED = {"n", "best_of", "prompt", "input", *SCHEMAS}
"""Fields whose values have ceilings."""
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def parse(body: Any) -> Asked:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Asked.parse(raw, base_name="tiny")


def schema(*, properties: int = 1, depth: int = 1) -> dict[str, Any]:
    """A JSON schema of so many properties, or nested so deep."""
    inner: dict[str, Any] = {"properties": {f"p{index}": True for index in range(properties)}}
    for _ in range(depth - 1):
        inner = {"items": inner}
    return inner


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({}, None),
        ({"adapter": None, "model": None}, None),
        ({"model": "tiny"}, None),
        ({"model": "support"}, "support"),
        ({"adapter": "support"}, "support"),
        ({"adapter": "support", "model": "tiny"}, "support"),
        ({"adapter": "support", "model": "support"}, "support"),
        ({"adapter": "support@3", "model": None}, "support@3"),
    ],
)
def test_adapter_and_model_name_one_thing(body: object, name: str | None) -> None:
    assert parse(body).name == name


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"adapter": "a", "model": "b"}, "conflicting_names", "model"),
        ({"adapter": ""}, "invalid_adapter_name", "adapter"),
        ({"adapter": " "}, "invalid_adapter_name", "adapter"),
        ({"adapter": 3}, "invalid_adapter_name", "adapter"),
        ({"adapter": True}, "invalid_adapter_name", "adapter"),
        ({"adapter": ["a"]}, "invalid_adapter_name", "adapter"),
        ({"model": {}}, "invalid_adapter_name", "model"),
        ({"n": 9}, "invalid_value", "n"),
        ({"n": 0}, "invalid_value", "n"),
        ({"n": "2"}, "invalid_value", "n"),
        ({"n": True}, "invalid_value", "n"),
        ({"n": 2.0}, "invalid_value", "n"),
        ({"best_of": 10**6}, "invalid_value", "best_of"),
        ([], "invalid_json", None),
        (b"", "invalid_json", None),
        (b"null", "invalid_json", None),
        (b'{"a": ', "invalid_json", None),
        (b'{"a": NaN}', "invalid_json", None),
        (b'{"a": 1e999}', "invalid_json", None),
        (b'{"a": "\\ud800"}', "invalid_json", None),
        (b'{"\\ud800": 1}', "invalid_json", None),
        (b'{"a": "\xff"}', "invalid_json", None),
        (b'{"a": ' + b"9" * 5000 + b"}", "invalid_json", None),
        (b'{"a":' * 100_000, "invalid_json", None),
        (b"[" * 100_000, "invalid_json", None),
        ('{"a": 1}'.encode("utf-16"), "invalid_json", None),
        (b'{"a": [' + b"[]," * 100_000 + b"[]]}", "invalid_json", None),
        (b'{"a": [' + b"1," * 100_000 + b"1]}", "invalid_json", None),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "invalid_json", None),
        (b'{"a": "' + b'\\"' * 400_000 + b"[," * 100_000 + b"\\", "invalid_json", None),
        ({"prompt": ["x"] * 65}, "invalid_value", "prompt"),
        ({"prompt": [[1, 2]] * 9, "n": 8}, "invalid_value", "prompt"),
        ({"prompt": ["x"] * 9, "best_of": 8}, "invalid_value", "prompt"),
        ({"input": ["x"] * 257}, "invalid_value", "input"),
        ({"tools": [{"description": "x" * (32 << 10)}]}, "schema_too_large", "tools"),
        ({"response_format": schema(properties=1000)}, "schema_too_large", "response_format"),
        ({"text": {"format": schema(depth=64)}}, "schema_too_large", "text"),
        ({"output_config": {"format": schema(properties=1000)}}, "schema_too_large", "output_config"),
        (
            {"structured_outputs": {"json": json.dumps(schema(properties=1000))}},
            "schema_too_large",
            "structured_outputs",
        ),
        ({"structured_outputs": {"json": json.dumps(schema(depth=64))}}, "schema_too_large", "structured_outputs"),
    ],
)
def test_what_cannot_be_is_refused_by_code_and_field(body: object, code: str, param: str | None) -> None:
    with pytest.raises(BadRequestError) as refused:
        parse(body)
    assert (refused.value.code, refused.value.param) == (code, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": list(range(90_000))},
        {"prompt": "1,2,[" * 150_000},
        {"prompt": ["x"] * 8, "n": 8},
        {"prompt": ["x"] * 64},
        {"input": ["x"] * 256},
        {"input": [{"role": "user", "content": "x"}] * 300},
        {"messages": [{"role": "user", "content": "x"}] * 2000},
        {"response_format": schema(properties=900), "tools": [schema(properties=900)]},
        {"response_format": schema(depth=60)},
        {"tools": None, "n": None, "prompt": None},
    ],
)
def test_what_is_long_but_little_work_is_taken(fields: dict[str, Any]) -> None:
    assert parse(fields).fields == fields


@pytest.mark.parametrize("field", sorted(OURS))
def test_fields_that_are_ours_are_refused_unless_they_ask_for_nothing(field: str) -> None:
    values: list[Any] = ["x", 0, True, {}, []]
    for value in values:
        with pytest.raises(BadRequestError) as refused:
            parse({field: value})
        assert (refused.value.code, refused.value.param) == ("unsupported_parameter", field)
    assert parse({field: None}).fields == parse({field: False}).fields == {}


@given(fields=st.dictionaries(st.text(), JSON_VALUES, max_size=5))
def test_all_else_reaches_the_engine_as_it_was_sent(fields: dict[str, Any]) -> None:
    kept = {name: value for name, value in fields.items() if name not in OURS | {"adapter", "model", *COUNTED}}
    inner = json.loads(parse(kept).body(model="tiny", cache_salt="salt"))
    assert inner == kept | {"model": "tiny", "cache_salt": "salt"}


@given(body=st.binary())
def test_no_bytes_do_anything_but_parse_or_be_refused(body: bytes) -> None:
    try:
        parse(body)
    except BadRequestError as refused:
        assert refused.code  # noqa: PT017  — either is right


def test_over_http_they_are_400_and_415_and_the_engine_never_hears_of_them(world: World) -> None:
    with world.client() as client:
        path = "/v1/chat/completions"
        assert client.post(path, content=b"{", headers={"content-type": "application/json"}).status_code == 400
        assert client.post(path, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
        zipped = {"content-type": "application/json", "content-encoding": "gzip"}
        assert client.post(path, content=b"{}", headers=zipped).status_code == 415
        refused = client.post(path, json={"priority": -1, "messages": []}).json()["error"]
        assert (refused["code"], refused["param"]) == ("unsupported_parameter", "priority")
        assert (
            client.post(path, json={"adapter": "no such/name/at all"}).json()["error"]["code"] == "invalid_adapter_name"
        )
    assert world.engine.seen_bodies == []
