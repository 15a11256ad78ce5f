"""The official clients on every route: who answers is named by the answer's `model`, streamed or not."""

from collections.abc import Iterator

import pytest
from anthropic import Anthropic, BadRequestError, NotFoundError
from openai import OpenAI

from server.engine.fake import BASE_MARK
from tests.server.world import OPERATOR, World

HELLO = "hello there"
NAMES = [
    ("support", "acme/support@1"),
    ("support@2", "acme/support@2"),
    ("support@canary", "acme/support@2"),
    ("acme/support@1", "acme/support@1"),
    ("zoo/keeper", "zoo/keeper@1"),
    ("tiny", "tiny"),
]
"""What is asked as `model`, and what the answer says it was."""


@pytest.fixture
def database() -> str:
    return "sqlite"


@pytest.fixture
def staffed(world: World) -> World:
    """acme's `support`, whose second version is `canary`, and zoo's `keeper`, granted to it."""
    for seed in (1, 2):
        world.publish("acme", "support", seed=seed, promote=seed == 1)
    world.registry.aliases.promote(OPERATOR, "acme", "support", 2, alias="canary")
    world.publish("zoo", "keeper", seed=3)
    world.registry.grants.give(OPERATOR, "zoo", "keeper", "acme")
    return world


@pytest.fixture
def openai(staffed: World) -> Iterator[OpenAI]:
    with staffed.openai() as client:
        yield client


@pytest.fixture
def anthropic(staffed: World) -> Iterator[Anthropic]:
    with Anthropic(base_url=staffed.live.base_url, api_key=staffed.keys["acme"], max_retries=0, timeout=30) as client:
        yield client


@pytest.mark.parametrize(("model", "label"), NAMES)
def test_openais_chat_names_what_answered(openai: OpenAI, model: str, label: str) -> None:
    said = openai.chat.completions.with_raw_response.create(model=model, messages=[{"role": "user", "content": HELLO}])
    whole = said.parse()
    assert whole.model == label
    assert said.headers.get("x-lorikeet-adapter", "tiny") == label
    chunks = list(
        openai.chat.completions.create(model=model, messages=[{"role": "user", "content": HELLO}], stream=True)
    )
    assert {chunk.model for chunk in chunks} == {label}
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.split() == (whole.choices[0].message.content or "").split()


@pytest.mark.parametrize(("model", "label"), NAMES)
def test_openais_completions_name_what_answered(openai: OpenAI, model: str, label: str) -> None:
    assert openai.completions.create(model=model, prompt=HELLO).model == label
    assert {chunk.model for chunk in openai.completions.create(model=model, prompt=HELLO, stream=True)} == {label}


@pytest.mark.parametrize(("model", "label"), NAMES)
def test_openais_responses_name_what_answered(openai: OpenAI, model: str, label: str) -> None:
    whole = openai.responses.create(model=model, input=HELLO)
    assert (whole.model, whole.status) == (label, "completed")
    events = list(openai.responses.create(model=model, input=HELLO, stream=True))
    frames = [event.response for event in events if event.type in {"response.created", "response.completed"}]
    assert [frame.model for frame in frames] == [label, label]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text.split() == whole.output_text.split()


@pytest.mark.parametrize(("model", "label"), NAMES)
def test_anthropics_messages_name_what_answered(anthropic: Anthropic, model: str, label: str) -> None:
    said = anthropic.messages.with_raw_response.create(
        model=model, max_tokens=4, messages=[{"role": "user", "content": HELLO}]
    )
    whole = said.parse()
    assert (whole.model, whole.usage.output_tokens) == (label, 4)
    assert said.headers.get("x-lorikeet-adapter", "tiny") == label
    with anthropic.messages.stream(model=model, max_tokens=4, messages=[{"role": "user", "content": HELLO}]) as stream:
        last = stream.get_final_message()
    assert (last.model, last.usage.output_tokens) == (label, 4)
    (once,), (streamed,) = whole.content, last.content
    assert once.type == streamed.type == "text"
    assert streamed.text.split() == once.text.split()


def test_embeddings_are_each_adapters_own(openai: OpenAI) -> None:
    vectors = {}
    for model in ("support", "support@2", "tiny"):
        answer = openai.embeddings.create(model=model, input=[HELLO, "bye"])
        assert answer.model == dict(NAMES)[model]
        assert len(answer.data) == 2
        vectors[model] = tuple(answer.data[0].embedding)
    assert len(set(vectors.values())) == 3


def test_tokens_are_counted_without_a_turn_and_without_loading_anything(staffed: World, anthropic: Anthropic) -> None:
    staffed.close_gate()
    for model in ("support", "tiny"):
        counted = anthropic.messages.count_tokens(model=model, messages=[{"role": "user", "content": HELLO}])
        assert counted.input_tokens == 2
    assert staffed.engine.loads == []
    assert staffed.residency() == {}
    staffed.open_gate()


def test_tokens_are_counted_for_nobodys_name_by_nobody(staffed: World, anthropic: Anthropic) -> None:
    for model in ("nobody", "zoo/nobody"):
        with pytest.raises(NotFoundError):
            anthropic.messages.count_tokens(model=model, messages=[{"role": "user", "content": HELLO}])
    assert staffed.engine.seen_bodies == []


def test_conflicting_names_are_a_400_on_every_route(staffed: World, anthropic: Anthropic) -> None:
    with pytest.raises(BadRequestError):
        anthropic.messages.create(
            model="support",
            max_tokens=4,
            messages=[{"role": "user", "content": HELLO}],
            extra_body={"adapter": "support@2"},
        )
    with staffed.client() as client:
        for path in ("/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/messages/count_tokens"):
            response = client.post(path, json={"model": "support", "adapter": "zoo/keeper", "input": HELLO})
            assert (response.status_code, response.json()["error"]["code"]) == (400, "conflicting_names")


def test_the_base_answers_in_its_own_words_and_name(staffed: World, anthropic: Anthropic) -> None:
    answer = anthropic.messages.create(model="tiny", max_tokens=2, messages=[{"role": "user", "content": HELLO}])
    (block,) = answer.content
    assert block.type == "text"
    assert staffed.marks(block.text) == {BASE_MARK}


def test_what_a_route_does_not_know_goes_no_further_and_is_named(staffed: World) -> None:
    body = {"messages": [{"role": "user", "content": HELLO}], "verbosity": "low", "foo": {"a": [1]}, "é,": 1}
    with staffed.client() as client:
        response = client.post("/v1/chat/completions", json={**body, "safety_identifier": "u"})
        assert response.headers["x-lorikeet-ignored"] == "foo,verbosity,??"
        many = client.post("/v1/chat/completions", json={**body, **{f"x{index:02}": 1 for index in range(30)}})
        assert many.headers["x-lorikeet-ignored"].split(",")[-2:] == ["x17", "..."]
        known = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": HELLO, "foo": 1}]})
        assert "x-lorikeet-ignored" not in known.headers
    first, _, last = staffed.engine.seen_bodies
    assert set(first) == {"messages", "model", "cache_salt"}
    assert last["messages"] == [{"role": "user", "content": HELLO, "foo": 1}]  # what is nested is not looked at
