"""What no admin should send: a 4xx with a code, and nothing is changed."""

import json
from typing import Any

import pytest

from tests.server.administering import ACME, LIVE, SUPPORT, call, publish, read, split
from tests.server.world import OPERATOR, World

JSON = {"content-type": "application/json"}
DIGITS = "9" * 5000
NEW_KEY = f"{ACME}/keys"
VERSION = f"{SUPPORT}/versions/1"
NO_POINTS: list[Any] = [
    {},
    [],
    None,
    "1",
    {"version": None},
    {"version": "1"},
    {"version": 1.0},
    {"version": True},
    {"version": 0},
    {"version": -1},
    {"version": 2**31},
    {"version": 10**400},
    {"version": 1, "alias": "x"},
    {"version": 1} | split((1, 1)),
    {"split": []},
    {"split": {}},
    {"split": [1, 2]},
    {"split": [{"version": 1}]},
    {"split": [{"version": 1, "weight": 1, "extra": 1}]},
    split((1, 1), (1, 2)),
    split((1, 0)),
    split((1, -1)),
    split((1, 1), (2, 10_001)),
    split((1, 1), (2, 2**63)),
    split((1, 0.5), (2, 0.5)),
    split((1, True), (2, 1)),
    split((1, "1"), (2, 1)),
    split((1, None)),
    split(*((number, 1) for number in range(1, 10))),
]
NO_ANNOTATIONS: list[Any] = [
    {},
    {"tags": None},
    {"tags": "gold"},
    {"tags": ["two words"]},
    {"tags": [""]},
    {"tags": ["\ud800"]},
    {"tags": [1]},
    {"tags": ["x" * 65]},
    {"tags": [f"tag-{number}" for number in range(33)]},
    {"note": None},
    {"note": 1},
    {"note": "x" * 10_001},
    {"note": "a\0b"},
    {"note": "\ud800"},
    {"note": "\x1b[31m"},
    {"state": "ready"},
]
NO_LIMITS: list[Any] = [
    {},
    {"limits": None},
    {"limits": []},
    {"limits": {"max_everything": 1}},
    {"limits": {"max_bytes": -1}},
    {"limits": {"max_bytes": 2**53}},
    {"limits": {"max_bytes": 10**400}},
    {"limits": {"max_bytes": 1.5}},
    {"limits": {"max_bytes": True}},
    {"limits": {"max_bytes": "1"}},
    {"limits": {}, "name": "new"},
]
NO_KEYS: list[Any] = [
    {},
    {"name": ""},
    {"name": "x" * 101},
    {"name": "\ud800"},
    {"name": 1},
    {"name": "k", "expires_at": "yesterday"},
    {"name": "k", "expires_at": "2020-01-01T00:00:00Z"},
    {"name": "k", "expires_at": "2120-01-01T00:00:00"},
    {"name": "k", "scopes": ["root"]},
]
BAD: list[tuple[str, str, Any, int]] = [
    *(("PUT", LIVE, body, 400) for body in NO_POINTS),
    ("PUT", LIVE, {"version": 9}, 404),
    ("PUT", LIVE, split((1, 1), (9, 1)), 404),
    ("PUT", f"{SUPPORT}/aliases/7", {"version": 1}, 400),
    ("PUT", f"{SUPPORT}/aliases/A%20b", {"version": 1}, 400),
    ("PUT", f"{ACME}/adapters/none/aliases/live", {"version": 1}, 404),
    ("GET", f"{SUPPORT}/aliases/7/history", None, 400),
    ("POST", f"{SUPPORT}/rollback?alias=7", None, 400),
    ("POST", f"{SUPPORT}/rollback?alias=none", None, 409),
    ("POST", f"{SUPPORT}/rollback?version=1", None, 400),
    ("POST", f"{SUPPORT}/rollback", {"alias": "canary"}, 400),
    *(("PATCH", VERSION, body, 400) for body in NO_ANNOTATIONS),
    *(("PATCH", f"{SUPPORT}/versions/{number}", {"note": "x"}, 400) for number in ("0", "-1", "x", "1.5", DIGITS)),
    ("PATCH", f"{SUPPORT}/versions/9", {"note": "x"}, 404),
    ("POST", f"{SUPPORT}/versions/9/restore", None, 404),
    ("POST", f"{SUPPORT}/versions/x/restore", None, 400),
    ("POST", f"{VERSION}/restore", {"state": "ready"}, 400),
    ("GET", f"{SUPPORT}/versions/9/lineage", None, 404),
    ("GET", f"{ACME}/adapters/none", None, 404),
    ("GET", f"{ACME}/adapters/%00", None, 404),
    ("GET", f"{ACME}/adapters/none/grants", None, 404),
    *(("PUT", f"{SUPPORT}/grants/{name}", None, 400) for name in ("acme", "A%20b", "%00", "%F0%9F%98%80", "x" * 65)),
    *(("DELETE", f"{SUPPORT}/grants/{name}", None, 404) for name in ("none", "A%20b", "%00", "' OR 1=1 --")),
    *(("PATCH", ACME, body, 400) for body in NO_LIMITS),
    ("PATCH", "/admin/v1/tenants/none", {"limits": {}}, 404),
    *(("POST", path, body, 400) for path in (NEW_KEY, "/admin/v1/keys") for body in NO_KEYS),
    ("POST", "/admin/v1/keys", {"name": "k", "scopes": ["platform"]}, 400),
    *(
        ("DELETE", f"{path}/{key}", None, 404)
        for path in (NEW_KEY, "/admin/v1/keys")
        for key in ("key-1", "%00", "%E2")
    ),
    ("GET", "/admin/v1/audit?tenant=none", None, 404),
    ("GET", "/admin/v1/audit?tenant=%00", None, 404),
    *(
        ("POST", f"{SUPPORT}/versions?{query}", None, status)
        for query, status in (
            ("kind=gguf", 400),
            ("kind=", 400),
            ("promote=perhaps", 400),
            ("promot=true", 400),
            ("base=none", 404),
            ("base=", 404),
            ("base=%00", 404),
            ("base=../../etc/passwd", 404),
            (f"base={'x' * 5000}", 404),
            ("&".join(["parents=support@1"] * 33), 400),
        )
    ),
]


def test_bad_input_is_a_4xx_with_a_code_and_changes_nothing(world: World) -> None:
    publish(world, 2)
    before = world.registry.audit(OPERATOR, limit=1000)
    with world.client("platform") as platform:
        for method, path, body, status in BAD:
            answer = platform.request(method, path, content=json.dumps(body), headers=JSON)
            described = (method, path[:80], str(body)[:80], answer.text[:200])
            assert answer.status_code == status, described
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}, described
            assert error["code"] != "internal_error", described
            assert len(answer.content) < 2000, described
    assert world.registry.audit(OPERATOR, limit=1000) == before


@pytest.mark.parametrize(
    "headers",
    [
        [("if-match", "rubbish")],
        [("if-match", "-1")],
        [("if-match", '"1", "2"')],
        [("if-match", "1"), ("if-match", "2")],
        [("if-none-match", '"1"')],
        [("if-none-match", "*"), ("if-match", "*")],
        [("if-match", DIGITS)],
    ],
)
def test_conditions_that_cannot_be_understood_are_refused(world: World, headers: list[tuple[str, str]]) -> None:
    publish(world, 2)
    for method, path, body in (("PUT", LIVE, {"version": 1}), ("POST", f"{SUPPORT}/rollback", {})):
        answer = call(world, method, path, headers=headers, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert read(world, SUPPORT)["live"] == 2


@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b'{"version": ' + b"1" * 5000 + b"}", b'{"version": NaN}', b""])
def test_a_body_that_is_no_json_is_refused(world: World, body: bytes) -> None:
    publish(world, 1)
    answer = call(world, "PUT", LIVE, content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in {"invalid_json", "invalid_request"}
