"""Bodies that are refused before anything is looked up, and those that are understood."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.asked import OURS, READ_HERE, Asked
from server.ceilings import MESSAGES, SCHEMAS
from server.errors import BadRequestError
from tests.server.world import World

COUNTED = {"n", "best_of", "prompt", *MESSAGES, *SCHEMAS}
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
        ({"input": [{}] * 257}, "invalid_value", "input"),
        ({"input": [{"content": [{}] * 4096}]}, "invalid_value", "input"),
        ({"messages": [{}] * 2049}, "invalid_value", "messages"),
        ({"messages": ["x"] * 2049}, "invalid_value", "messages"),
        ({"messages": [{"content": [{}] * 4096}]}, "invalid_value", "messages"),
        ({"messages": [{"content": [{"content": [{}, {}]}]}] * 1366}, "invalid_value", "messages"),
        ({"system": [{}] * 2049}, "invalid_value", "system"),
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
        {"input": [{"role": "user", "content": "x"}] * 256},
        {"input": list(range(90_000))},
        {"messages": [{"role": "user", "content": "x"}] * 2048},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 4095}]},
        {"response_format": schema(properties=900), "tools": [schema(properties=900)]},
        {"response_format": schema(depth=60)},
        {"tools": None, "n": None, "prompt": None},
    ],
)
def test_what_is_long_but_little_work_is_taken(fields: dict[str, Any]) -> None:
    assert parse(fields).fields == fields


@pytest.mark.parametrize("field", sorted(OURS))
def test_fields_that_are_ours_are_refused_unless_they_ask_for_nothing(field: str) -> None:
    values: list[Any] = ["x", 1, -1, 0.5, True, {"a": None}, [0]]
    for value in values:
        with pytest.raises(BadRequestError) as refused:
            parse({field: value})
        assert (refused.value.code, refused.value.param) == ("unsupported_parameter", field)
    nothing: list[Any] = [None, False, 0, 0.0, "", {}, []]
    assert all(parse({field: value}).fields == {} for value in nothing)


@given(fields=st.dictionaries(st.text(), JSON_VALUES, max_size=5))
def test_all_else_reaches_the_engine_as_it_was_sent(fields: dict[str, Any]) -> None:
    kept = {name: value for name, value in fields.items() if name not in OURS | {"adapter", "model", *COUNTED}}
    inner = json.loads(parse(kept).body(model="tiny", cache_salt="salt"))
    assert inner == kept | {"model": "tiny", "cache_salt": "salt"}


@given(
    fields=st.dictionaries(st.text(), JSON_VALUES, max_size=30),
    known=st.frozensets(st.sampled_from(["messages", "a", "b"])),
)
def test_only_what_its_route_knows_is_passed_on_and_the_rest_is_named(
    fields: dict[str, Any], known: frozenset[str]
) -> None:
    sent = {name: value for name, value in fields.items() if name not in OURS | {"adapter", "model", *COUNTED}}
    asked = Asked.parse(json.dumps(sent).encode(), base_name="tiny", known=known)
    assert asked.fields == {name: value for name, value in sent.items() if name in known}
    assert set(asked.ignored) == sent.keys() - known - READ_HERE
    header = asked.ignored_header
    assert header.isascii()
    assert not header or (header.isprintable() and " " not in header)
    assert len(header.split(",")) <= 21
    assert all(len(name) <= 64 for name in header.split(","))


@pytest.mark.parametrize(
    ("body", "names_base"),
    [
        ({}, False),
        ({"model": None}, False),
        ({"model": "tiny"}, True),
        ({"model": "tiny", "adapter": None}, True),
        ({"model": "tiny", "adapter": "support"}, False),
        ({"model": "support"}, False),
    ],
)
def test_only_who_writes_the_bases_name_asks_the_base_by_name(body: object, names_base: bool) -> None:  # noqa: FBT001
    assert parse(body).names_base is names_base


def test_only_what_is_passed_on_has_ceilings() -> None:
    fields = {"n": 9, "prompt": ["x"] * 100, "input": ["x"] * 300, "tools": schema(depth=90)}
    asked = Asked.parse(json.dumps(fields).encode(), base_name="tiny", known=frozenset({"messages"}))
    assert (asked.fields, asked.sequences) == ({}, 1)
    assert asked.ignored == tuple(sorted(fields))


def test_what_decides_the_arm_is_not_ignored() -> None:
    body = json.dumps({"metadata": {"user_id": "u"}}).encode()
    asked = Asked.parse(body, base_name="tiny", known=frozenset({"messages"}))
    assert (asked.sticky, asked.ignored) == ("u", ())


def test_without_a_name_that_all_may_know_the_bases_is_one_like_any_other() -> None:
    asked = Asked.parse(b'{"model": "acme/model@2"}', base_name=None)
    assert (asked.name, asked.names_base) == ("acme/model@2", False)
    assert not Asked.parse(b"{}", base_name=None).names_base


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
