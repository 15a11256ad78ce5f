"""The whole API on the real engine, through the clients that people use: each route, each tenant, its own weights.

Each question is asked by both tenants and of the base, alone and then all at once: who is asked must not matter to the
others, and what answers must say who it is.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from anthropic import Anthropic
from openai import OpenAI

from tests.engine.asking import GREEDY, QUESTION, chat
from tests.engine.conftest import OPERATOR, RealServer

pytestmark = pytest.mark.engine

Said = tuple[str, set[str]]
"""What was answered, and every `model` that the answer named."""
TOOL = {
    "name": "look_up",
    "description": "Look something up.",
    "parameters": {
        "type": "object",
        "properties": {"word": {"type": "string", "pattern": "^[a-z]{2,6}$"}},
        "required": ["word"],
        "additionalProperties": False,
    },
}
COLOURS = ["red", "green", "blue", "black", "white", "brown"]
COLOUR = {"type": "string", "enum": COLOURS}
MESSAGE: dict[str, Any] = {"messages": QUESTION, "max_tokens": 12, "extra_body": {"temperature": 0}}
"""GREEDY for Anthropic's client, which knows no temperature any more."""
WARM: dict[str, Any] = {"messages": QUESTION, "temperature": 1, "max_tokens": 8}


@dataclass(frozen=True)
class Asker:
    """Somebody's clients, the name that they ask, and what must answer."""

    openai: OpenAI
    anthropic: Anthropic
    model: str
    label: str


@pytest.fixture
def askers(server: RealServer) -> Iterator[list[Asker]]:
    """Both tenants' adapters, and the base."""
    base = server.base.name
    of_whom = (
        (server.acme, "support", "acme/support@1"),
        (server.globex, "support", "globex/support@1"),
        (server.acme, base, base),
    )
    with ExitStack() as clients:
        yield [
            Asker(
                clients.enter_context(OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)),
                clients.enter_context(Anthropic(base_url=server.url, api_key=key, max_retries=0)),
                model,
                label,
            )
            for key, model, label in of_whom
        ]


def chat_whole(asker: Asker) -> Said:
    answer = asker.openai.chat.completions.create(model=asker.model, **GREEDY)
    return answer.choices[0].message.content or "", {answer.model}


def chat_stream(asker: Asker) -> Said:
    options: Any = {"include_usage": True}
    chunks = list(
        asker.openai.chat.completions.create(model=asker.model, stream=True, stream_options=options, **GREEDY)
    )
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.completion_tokens, usage.total_tokens) == (12, usage.prompt_tokens + 12)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]), {chunk.model for chunk in chunks}


def completions_whole(asker: Asker) -> Said:
    answer = asker.openai.completions.create(model=asker.model, prompt="Where is", temperature=0, max_tokens=12)
    return answer.choices[0].text, {answer.model}


def completions_stream(asker: Asker) -> Said:
    asked: dict[str, Any] = {"prompt": "Where is", "temperature": 0, "max_tokens": 12}
    chunks = list(asker.openai.completions.create(model=asker.model, stream=True, **asked))
    return "".join(chunk.choices[0].text for chunk in chunks), {chunk.model for chunk in chunks}


def responses_whole(asker: Asker) -> Said:
    answer = asker.openai.responses.create(model=asker.model, input="Where is it?", temperature=0, max_output_tokens=12)
    return answer.output_text, {answer.model}


def responses_stream(asker: Asker) -> Said:
    asked: dict[str, Any] = {"input": "Where is it?", "temperature": 0, "max_output_tokens": 12}
    events = list(asker.openai.responses.create(model=asker.model, stream=True, **asked))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    return text, {event.response.model for event in events if hasattr(event, "response")}


def messages_whole(asker: Asker) -> Said:
    answer = asker.anthropic.messages.create(model=asker.model, **MESSAGE)
    return answer.content[0].text, {answer.model}


def messages_stream(asker: Asker) -> Said:
    with asker.anthropic.messages.stream(model=asker.model, **MESSAGE) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert final.usage.output_tokens == 12
    return text, {final.model}


def tool_named(asker: Asker) -> Said:
    choice: Any = {"type": "function", "function": {"name": "look_up"}}
    tools: Any = [{"type": "function", "function": TOOL}]
    asked = GREEDY | {"max_tokens": 200, "tools": tools, "tool_choice": choice}
    answer = asker.openai.chat.completions.create(model=asker.model, **asked)
    (call,) = answer.choices[0].message.tool_calls or [None]
    assert call is not None
    assert call.type == "function"
    assert call.function.name == "look_up"
    return json.loads(call.function.arguments)["word"], {answer.model}


def tool_required(asker: Asker) -> Said:
    asked: dict[str, Any] = {"tools": [{"type": "function", **TOOL}], "tool_choice": "required"}
    one: dict[str, Any] = {"parallel_tool_calls": False, "temperature": 0, "max_output_tokens": 200}
    answer = asker.openai.responses.create(model=asker.model, input="Where is it?", **asked, **one)
    calls = [item for item in answer.output if item.type == "function_call"]
    assert len(calls) == 1, answer.to_json()
    return json.loads(calls[0].arguments)["word"], {answer.model}


def tool_of_messages(asker: Asker) -> Said:
    tools: Any = [{"name": "look_up", "input_schema": TOOL["parameters"]}]
    choice: Any = {"type": "tool", "name": "look_up"}
    answer = asker.anthropic.messages.create(
        model=asker.model, **MESSAGE | {"max_tokens": 200, "tools": tools, "tool_choice": choice}
    )
    (block,) = (block for block in answer.content if block.type == "tool_use")
    assert answer.stop_reason == "tool_use"
    return block.input["word"], {answer.model}


def log_probabilities(asker: Asker) -> Said:
    answer = asker.openai.chat.completions.create(model=asker.model, logprobs=True, top_logprobs=3, **GREEDY)
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.content is not None
    assert len(found.content) == 12
    assert all(one.logprob == max(top.logprob for top in one.top_logprobs) for one in found.content)
    return "".join(one.token for one in found.content), {answer.model}


def seeded(asker: Asker) -> Said:
    said = [
        asker.openai.chat.completions.create(model=asker.model, seed=seed, **WARM).choices[0].message.content or ""
        for seed in (7, 7, 8)
    ]
    assert said[0] == said[1] != said[2]
    return said[0], {asker.label}


def several(asker: Asker) -> Said:
    answer = asker.openai.chat.completions.create(model=asker.model, n=3, seed=1, **WARM)
    texts = [choice.message.content or "" for choice in answer.choices]
    assert len(set(texts)) == 3
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 3 * 8
    return "|".join(texts), {answer.model}


CALLS: list[Callable[[Asker], Said]] = [
    *(chat_whole, chat_stream, completions_whole, completions_stream),
    *(responses_whole, responses_stream, messages_whole, messages_stream),
    *(tool_named, tool_required, tool_of_messages, log_probabilities, seeded, several),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_every_call_is_answered_with_the_weights_that_it_names_whoever_else_asks(
    askers: list[Asker], call: Callable[[Asker], Said]
) -> None:
    alone = [call(asker) for asker in askers]
    with ThreadPoolExecutor(len(askers)) as threads:
        together = list(threads.map(call, askers))

    assert together == alone
    assert len({text for text, _ in alone}) == len(askers)
    assert [models for _, models in alone] == [{asker.label} for asker in askers]


def test_structured_output_holds_for_every_adapter(askers: list[Asker]) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "colour", "schema": COLOUR}}
    for asker in askers:
        answer = asker.openai.chat.completions.create(model=asker.model, response_format=form, **GREEDY)
        assert json.loads(answer.choices[0].message.content or "") in COLOURS
        text: Any = {"format": {"type": "json_schema", "name": "colour", "schema": COLOUR}}
        response = asker.openai.responses.create(model=asker.model, input="Which?", max_output_tokens=20, text=text)
        assert json.loads(response.output_text) in COLOURS
        assert (answer.model, response.model) == (asker.label, asker.label)


def test_a_tool_that_need_not_be_called_leaves_the_answer_as_it_is(askers: list[Asker]) -> None:
    tools: Any = [{"name": "look_up", "input_schema": TOOL["parameters"]}]
    for asker in askers:
        answer = asker.anthropic.messages.create(model=asker.model, tools=tools, **MESSAGE)
        assert (answer.content[0].text, {answer.model}) == messages_whole(asker)


def test_a_stop_string_ends_each_adapters_own_answer(askers: list[Asker]) -> None:
    for asker in askers:
        text, _ = chat_whole(asker)
        stop = text[4:6]
        answer = asker.openai.chat.completions.create(model=asker.model, stop=[stop], **GREEDY)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (
            text[: text.index(stop)],
            "stop",
        )
        message = asker.anthropic.messages.create(model=asker.model, stop_sequences=[stop], **MESSAGE)
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)


def test_a_bias_forces_a_token_on_every_adapter(askers: list[Asker]) -> None:
    for asker in askers:
        answer = asker.openai.chat.completions.create(model=asker.model, logit_bias={"40": 100}, **GREEDY)
        text = answer.choices[0].message.content or ""
        assert (len(text), len(set(text))) == (12, 1)


def test_tokens_are_counted_as_a_message_would_be_charged(askers: list[Asker]) -> None:
    for asker in askers:
        counted = asker.anthropic.messages.count_tokens(model=asker.model, messages=QUESTION)  # type: ignore[arg-type]
        usage = asker.anthropic.messages.create(model=asker.model, **MESSAGE).usage
        assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_the_label_of_a_granted_adapter_is_the_name_that_its_caller_asked(server: RealServer) -> None:
    server.registry.grants.give(OPERATOR, "globex", "support", "acme")
    try:
        for name in ("globex/support", "globex/support@1"):
            assert chat(server, server.acme, model=name).json()["model"] == "globex/support@1"
    finally:
        server.registry.grants.take(OPERATOR, "globex", "support", "acme")
