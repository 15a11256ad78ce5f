"""The whole server on the real engine: what a client sees."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai import NotFoundError, OpenAI

from adapters import Base, folder_members
from tests.builders import make_adapter_folder
from tests.engine.asking import GREEDY, QUESTION, chat, text_of
from tests.engine.conftest import ALL_LINEAR, OPERATOR, RealServer

pytestmark = pytest.mark.engine


def test_the_openai_client_gets_the_base_and_each_tenants_adapter_streamed_and_not(server: RealServer) -> None:
    answers = {}
    for key in (server.acme, server.globex):
        client = OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
        base, *adapters = (model.id for model in client.models.list().data)
        assert "support" in adapters
        for model in (base, "support"):
            whole = client.chat.completions.create(model=model, **GREEDY)
            stream = client.chat.completions.create(model=model, stream=True, **GREEDY)
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
            assert streamed == whole.choices[0].message.content
            answers[key, model == base] = streamed
    acme, globex = server.acme, server.globex
    assert answers[acme, True] == answers[globex, True]
    assert len({answers[acme, True], answers[acme, False], answers[globex, False]}) == 3


def test_the_openai_client_gets_its_own_404_for_an_adapter_it_does_not_have(server: RealServer) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key=server.acme, max_retries=0)

    with pytest.raises(NotFoundError) as refusal:
        client.chat.completions.create(model="nothing", messages=QUESTION)  # type: ignore[arg-type]

    assert refusal.value.code == "adapter_not_found"


@pytest.mark.parametrize(
    ("path", "body", "read"),
    [
        (
            "/v1/completions",
            {"prompt": "Where is", "temperature": 0, "max_tokens": 8},
            lambda a: a["choices"][0]["text"],
        ),
        (
            "/v1/responses",
            {"input": "Where is my order?", "temperature": 0, "max_output_tokens": 8},
            lambda a: a["output"][0]["content"][0]["text"],
        ),
        (
            "/v1/messages",
            {"messages": QUESTION, "temperature": 0, "max_tokens": 8},
            lambda a: a["content"][0]["text"],
        ),
    ],
)
def test_every_kind_of_generation_answers_with_the_adapter_that_is_named(
    server: RealServer, path: str, body: dict[str, Any], read: Callable[[Any], str]
) -> None:
    with server.client(server.acme) as client:
        plain, adapted = client.post(path, json=body), client.post(path, json=body | {"adapter": "support"})

    assert plain.status_code == adapted.status_code == 200, plain.text + adapted.text
    assert read(plain.json()) != read(adapted.json())
    assert adapted.headers["x-lorikeet-adapter"] == "acme/support@1"
    assert "x-lorikeet-adapter" not in plain.headers


def test_a_promote_under_load_fails_no_request_and_mixes_no_answer(
    server: RealServer, tiny_base: Base, tmp_path: Path
) -> None:
    folders = [
        make_adapter_folder(tmp_path / name, tiny_base, modules=ALL_LINEAR, seed=seed, strength=1.0)
        for name, seed in (("old", 100), ("new", 101))
    ]
    server.publish("acme", "moving", folders[0])
    old = text_of(chat(server, server.acme, adapter="moving"))
    new_number = server.registry.versions.publish(
        OPERATOR, "acme", "moving", folder_members(folders[1]), base=tiny_base.fingerprint
    ).version.number
    new = text_of(chat(server, server.acme, adapter=f"moving@{new_number}"))
    assert old != new
    expected = {"acme/moving@1": old, f"acme/moving@{new_number}": new}

    seen: list[tuple[str, str]] = []
    promoted = threading.Event()
    has_both = threading.Event()

    def ask_on() -> None:
        after = 0
        while after < 3:
            after += promoted.is_set()
            answer = chat(server, server.acme, adapter="moving")
            seen.append((answer.headers.get("x-lorikeet-adapter", answer.text), text_of(answer)))
            if len(seen) > 6:
                has_both.set()

    askers = [threading.Thread(target=ask_on) for _ in range(4)]
    for asker in askers:
        asker.start()
    assert has_both.wait(60)
    with server.client(server.acme) as client:
        moved = client.put("/admin/v1/tenants/acme/adapters/moving/aliases/live", json={"version": new_number})
    promoted.set()
    for asker in askers:
        asker.join(120)

    assert moved.status_code == 200, moved.text
    assert all(expected[label] == text for label, text in seen)
    assert {label for label, _ in seen} == set(expected)
    assert len(seen) >= 4 * 3
    assert chat(server, server.acme, adapter="moving").headers["x-lorikeet-adapter"] == f"acme/moving@{new_number}"
