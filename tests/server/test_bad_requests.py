"""Bad inference requests, drawn rather than listed: each is refused in our shape, and leaves everything as it was."""

import json
import re
import string
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.asked import OURS
from server.gateway import PATHS
from tests.server.world import World

CHAT = "/v1/chat/completions"
GOOD = {"messages": [{"role": "user", "content": "hello"}]}
TELLTALE = re.compile(
    r"Traceback|File \"|\.py\b|/(?:home|root|tmp|opt|usr|var|etc|work)/|sqlalchemy|SELECT |zoo|keeper"
)
"""A path, a traceback, SQL, or another tenant's name."""
NAMES = string.ascii_lowercase + string.digits + "-._@/"

not_numbers = st.text() | st.lists(st.integers(), min_size=1) | st.dictionaries(st.text(), st.none(), min_size=1)
numbers_beyond = {
    "max_tokens": st.integers(max_value=0) | st.integers(min_value=2049),
    "max_completion_tokens": st.integers(max_value=0) | st.integers(min_value=2049),
    "temperature": st.floats(max_value=-0.01, allow_infinity=False) | st.floats(min_value=2.01, allow_infinity=False),
    "top_p": st.floats(max_value=0, allow_infinity=False) | st.floats(min_value=1.01, allow_infinity=False),
    "top_k": st.integers(max_value=-2),
    "min_p": st.floats(min_value=1.01, allow_infinity=False),
    "presence_penalty": st.floats(min_value=2.01, allow_infinity=False),
    "frequency_penalty": st.floats(max_value=-2.01, allow_infinity=False),
    "n": st.integers(max_value=0) | st.integers(min_value=9),
    "top_logprobs": st.integers(max_value=-1) | st.integers(min_value=21),
    "seed": st.integers(min_value=2**63),
}
"""C-11 to C-15 and C-18: the field, and numbers that it never takes."""
bad_numbers = st.sampled_from(sorted(numbers_beyond)).flatmap(
    lambda name: st.fixed_dictionaries({name: numbers_beyond[name] | not_numbers})
)
bad_messages = st.fixed_dictionaries(
    {
        "messages": st.none()
        | st.just([])
        | st.text()
        | st.integers()
        | st.lists(st.none() | st.integers() | st.text(), min_size=1, max_size=3)
        | st.lists(st.fixed_dictionaries({"content": st.text()}), min_size=1, max_size=2)
        | st.lists(st.fixed_dictionaries({"role": st.just("root"), "content": st.text()}), min_size=1, max_size=2)
        | st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.none()}), min_size=1, max_size=2)
    }
)
"""C-07 and C-08."""
bad_parts = st.one_of(
    st.fixed_dictionaries({"stop": st.lists(st.text(min_size=1), min_size=5, max_size=8)}),
    st.fixed_dictionaries({"stop": st.lists(st.integers(), min_size=1)}),
    st.fixed_dictionaries(
        {"response_format": st.text() | st.sampled_from([{"type": "json_schema"}, {"type": "poem"}])}
    ),
    st.fixed_dictionaries({"response_format": st.just({"type": "json_schema", "json_schema": {"d": "x" * 40_000}})}),
    st.fixed_dictionaries({"tools": st.just([{"description": "x" * 40_000}]) | st.text(min_size=1)}),
    st.fixed_dictionaries({"tool_choice": st.just("whatever")}),
    st.fixed_dictionaries({"stream": st.sampled_from(["yes", 1, [], {}])}),
    st.fixed_dictionaries({"stream_options": st.just({"include_usage": True}) | st.integers()}),
)
"""C-16, C-19, C-22, C-25, C-32."""
ours: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(sorted(OURS)), st.integers(min_value=1) | st.text(min_size=1) | st.just([0]), min_size=1, max_size=3
)
"""C-26 and C-27."""
no_names = (
    st.sampled_from(
        ["", " ", "x" * 300, "\uff53upport", "support\0", "support\n", "a@latest@1", "a@-1", "../x", "a//b"]
    )
    | st.integers()
    | st.booleans()
    | st.lists(st.text(), max_size=2)
    | st.dictionaries(st.text(), st.text(), max_size=2)
)
nobodys = st.sampled_from(
    ["keeper", "keeper@1", "zoo/keeper", "zoo/keeper@1", "support@99", "support@canary"]
) | st.text(NAMES, min_size=1, max_size=80).filter(
    lambda name: name not in {"support", "support@1", "support@live", "tiny"}
)
named_badly = st.one_of(
    st.fixed_dictionaries({"adapter": no_names | nobodys}),
    st.fixed_dictionaries({"model": no_names | nobodys}),
    st.fixed_dictionaries({"adapter": st.just("support"), "model": st.just("support@1") | nobodys}),
)
"""A-02 to A-07 and C-33."""
not_json = st.binary().filter(lambda body: not _is_object(body)) | st.sampled_from(
    [b"", b"[]", b'{"messages": [', b"\xff\xfe", b'{"a": "\\ud800"}', b'{"a": NaN}', b"[" * 100_000, b'{"a":' * 100_000]
)
"""C-01, C-03, C-04."""


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except ValueError:
        return False


class Watch:
    """Asks what is bad, and that nothing came of it."""

    def __init__(self, world: World, client: httpx.Client) -> None:
        self._world = world
        world.publish("acme", "support", seed=1)
        world.publish("zoo", "keeper", seed=2)
        self.client = client
        self._golden = self._ask_golden()
        self._made = len(world.engine.loads)

    def refuse(self, path: str, **request: Any) -> Any:
        """Send it; the error."""
        response = self.client.post(path, **request)
        assert response.status_code in range(400, 500), response.text
        error = response.json()["error"]
        beside = {"details"} if path.startswith("/v1/messages") else set()  # as Anthropic's clients read it
        assert set(error) == {"message", "type", "param", "code"} | beside
        assert error["message"]
        assert error["code"]
        sent = self._sent(request)
        assert not TELLTALE.search(error["message"]) or error["message"] in sent or TELLTALE.search(sent), error
        assert self._ask_golden() == self._golden
        assert len(self._world.engine.loads) == self._made
        return error

    def _ask_golden(self) -> list[bytes]:
        bodies = ({**GOOD, "temperature": 0, "adapter": name} for name in ("support", None))
        return [self.client.post(CHAT, json=body).content for body in bodies]

    def _sent(self, request: dict[str, Any]) -> str:
        return str(request.get("json", ""))


@pytest.fixture
def watch(world: World) -> Any:
    with world.client() as client:
        yield Watch(world, client)
        assert set(world.residency().values()) == {0}


@pytest.fixture
def database() -> str:
    return "sqlite"  # what is refused here never gets to one


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@bounded(60)
@given(wrong=bad_numbers | bad_messages | bad_parts, is_adapters=st.booleans())
def test_a_field_that_cannot_be_is_400(watch: Watch, wrong: dict[str, Any], is_adapters: bool) -> None:  # noqa: FBT001
    watch.refuse(CHAT, json={**GOOD, "adapter": "support" if is_adapters else None, **wrong})


@bounded(25)
@given(wrong=ours, path=st.sampled_from(sorted(PATHS)))
def test_a_field_that_is_ours_is_400_on_every_route(watch: Watch, wrong: dict[str, Any], path: str) -> None:
    error = watch.refuse(path, json={**GOOD, **wrong})
    assert error["code"] == "unsupported_parameter"
    assert error["param"] in wrong


@bounded(40)
@given(wrong=named_badly, path=st.sampled_from([CHAT, "/v1/messages/count_tokens"]))
def test_a_name_that_means_nothing_is_400_or_404(watch: Watch, wrong: dict[str, Any], path: str) -> None:
    error = watch.refuse(path, json={**GOOD, **wrong})
    assert error["code"] in {"invalid_adapter_name", "adapter_not_found", "conflicting_names"}
    if error["code"] == "adapter_not_found":
        assert error["message"] == "You have no adapter with this name, version or alias."


@bounded(25)
@given(body=not_json, path=st.sampled_from(sorted(PATHS)))
def test_a_body_that_is_no_json_object_is_400(watch: Watch, body: bytes, path: str) -> None:
    error = watch.refuse(path, content=body, headers={"content-type": "application/json"})
    assert error["code"] == "invalid_json"


@bounded(15)
@given(
    headers=st.sampled_from(
        [
            {"content-type": "text/plain"},
            {"content-type": "multipart/form-data"},
            {"content-type": "application/json", "content-encoding": "gzip"},
            {},
        ]
    ),
    body=st.binary(max_size=50),
)
def test_a_body_that_says_it_is_something_else_is_415(watch: Watch, headers: dict[str, str], body: bytes) -> None:
    assert watch.refuse(CHAT, content=body, headers=headers)["code"] == "unsupported_media_type"
