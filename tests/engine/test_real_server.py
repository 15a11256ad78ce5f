"""The whole server on the real engine: what a client sees."""

import asyncio
import json
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from openai import NotFoundError, OpenAI

from adapters import Base, Module, folder_members
from tests.builders import Tensor, adapter_config, adapter_tensors, make_adapter_folder, safetensors_bytes
from tests.engine.conftest import ALL_LINEAR, OPERATOR, RealServer

pytestmark = pytest.mark.engine

QUESTION = [{"role": "user", "content": "Where is my order?"}]
JUST_BELOW_THE_BOUND = 40.0
"""The spread of B at which scale · ‖A‖ · ‖B‖ comes near the gate's 10⁴ on the tiny base."""
GREEDY: dict[str, Any] = {"messages": QUESTION, "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def server(real_server: RealServer, strong_adapters: list[Path]) -> RealServer:
    """With an adapter each for two tenants."""
    real_server.publish("acme", "support", strong_adapters[0])
    real_server.publish("globex", "support", strong_adapters[1])
    return real_server


def chat(server: RealServer, key: str, **fields: Any) -> httpx.Response:
    with server.client(key) as client:
        return client.post("/v1/chat/completions", json=GREEDY | fields)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    content: str = answer.json()["choices"][0]["message"]["content"]
    return content


def test_the_openai_client_gets_the_base_and_each_tenants_adapter_streamed_and_not(server: RealServer) -> None:
    answers = {}
    for key in (server.acme, server.globex):
        client = OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
        base, adapter = (model.id for model in client.models.list().data)
        for model in (base, adapter):
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


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_lease_and_stops_its_generation(server: RealServer, stream: bool) -> None:  # noqa: FBT001
    llm: Any = server.engine
    body = {**GREEDY, "adapter": "support", "max_tokens": 900, "ignore_eos": True, "stream": stream}

    with connected(server, body):
        wait_until(lambda: llm._llm.get_num_unfinished_requests() > 0 and leases(server)["acme/support@1"] == 1)

    wait_until(lambda: llm._llm.get_num_unfinished_requests() == 0 and not any(leases(server).values()))


def test_what_was_generated_before_a_client_hung_up_is_counted(server: RealServer) -> None:
    llm: Any = server.engine
    before = counted(server, "support", "1")
    body = {**GREEDY, "adapter": "support", "max_tokens": 900, "ignore_eos": True}

    with connected(server, body):
        wait_until(lambda: counted(server, "support", "1")["completion"] > before["completion"])
    wait_until(lambda: llm._llm.get_num_unfinished_requests() == 0)

    after = counted(server, "support", "1")
    assert after["prompt"] > before["prompt"]
    assert 0 < after["completion"] - before["completion"] < 900


@pytest.mark.parametrize("stream", [True, False])
def test_every_choice_is_answered_and_counted(server: RealServer, stream: bool) -> None:  # noqa: FBT001
    before = counted(server, "support", "1")
    client = OpenAI(base_url=f"{server.url}/v1", api_key=server.acme, max_retries=0)
    request: dict[str, Any] = {**GREEDY, "n": 3, "temperature": 1, "seed": 1, "extra_body": {"ignore_eos": True}}

    if stream:
        chunks = list(
            client.chat.completions.create(
                model="support", stream=True, stream_options={"include_usage": True}, **request
            )
        )
        indices = {choice.index for chunk in chunks for choice in chunk.choices}
        usage = chunks[-1].usage
    else:
        answer = client.chat.completions.create(model="support", **request)
        indices = {choice.index for choice in answer.choices}
        usage = answer.usage

    after = counted(server, "support", "1")
    assert indices == {0, 1, 2}
    assert usage is not None
    assert usage.completion_tokens == 3 * 12
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        after["prompt"] - before["prompt"],
        after["completion"] - before["completion"],
    )


def counted(server: RealServer, adapter: str, version: str) -> dict[str, float]:
    """acme's tokens so far, by kind, as /metrics tells them."""
    with server.client(server.platform) as client:
        lines = client.get("/metrics").text.splitlines()
    label = f'adapter="{adapter}",kind="{{kind}}",tenant="acme",version="{version}"'
    return {
        kind: sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith(f"lorikeet_tokens_total{{{label.format(kind=kind)}}}")
        )
        for kind in ("prompt", "completion")
    }


@contextmanager
def connected(server: RealServer, body: dict[str, Any]) -> Iterator[None]:
    """A chat that was sent; its connection is cut when the block ends."""
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: lorikeet\r\nAuthorization: Bearer {server.acme}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall(head.encode() + content)
        yield


def leases(server: RealServer) -> dict[str, int]:
    """Open leases by version, as the admin API tells them."""
    with server.client(server.platform) as client:
        residents = client.get("/admin/v1/residency").json()["data"]
    return {f"{one['tenant']}/{one['adapter']}@{one['version']}": one["leases"] for one in residents}


def wait_until(is_true: Callable[[], bool], seconds: float = 30) -> None:
    """Ask again and again; each look is a call to the server, so this is no busy loop."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not come true"


def test_an_adapter_is_not_unloaded_under_a_request_that_has_not_left_the_engine(
    server: RealServer, strong_adapters: list[Path]
) -> None:
    engine = server.engine

    async def story() -> set[str]:
        adapter = await engine.load("leaving", strong_adapters[2])
        generating = asyncio.create_task(engine.sample("Where is", adapter, max_tokens=100), name="generating")
        while not cast("Any", engine)._llm._running[adapter.int_id]:  # noqa: ASYNC110  — until vLLM has it
            await asyncio.sleep(0)
        unloading = asyncio.create_task(engine.unload(adapter), name="unloading")
        first, rest = await asyncio.wait({generating, unloading}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*rest)
        return {task.get_name() for task in first}

    assert server.live.call(story()) == {"generating"}


# --- bad uploads ------------------------------------------------------------------------------------------------------


def two_files(config: Any, weights: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [
        ("files", ("adapter_config.json", config if isinstance(config, bytes) else json.dumps(config).encode())),
        ("files", ("adapter_model.safetensors", weights)),
    ]


def bad_uploads(base: Base) -> dict[str, tuple[str, list[tuple[str, tuple[str, bytes]]]]]:
    """A case of each kind that stock vLLM loads, dies of, or answers wrongly with: its name → (code, files)."""
    tensors = adapter_tensors(base, 8)
    good, weights = adapter_config(8), safetensors_bytes(tensors)
    first = next(iter(tensors))
    q_down = tensors[first]
    smaller = adapter_tensors(
        replace(base, modules={k: Module(m.in_features // 2, m.out_features // 2) for k, m in base.modules.items()}), 8
    )
    nan = tensors | {first: Tensor.of(np.full(q_down.shape, np.nan))}
    renamed = {name.replace(".layers.", ".blocks."): tensor for name, tensor in tensors.items()}
    return {
        "not a number": ("not_finite", two_files(good, safetensors_bytes(nan))),
        "made for a smaller base": ("shape_mismatch", two_files(good, safetensors_bytes(smaller))),
        "names that match nothing": ("unknown_module", two_files(good, safetensors_bytes(renamed))),
        "an A without its B": (
            "missing_pair",
            two_files(good, safetensors_bytes({k: v for k, v in tensors.items() if k != first})),
        ),
        "cut off": ("safetensors_invalid", two_files(good, weights[:-50])),
        "DoRA": ("unsupported_config", two_files(good | {"use_dora": True}, weights)),
        "a rank beyond the registry's": (
            "rank_too_high",
            two_files(adapter_config(64), safetensors_bytes(adapter_tensors(base, 64))),
        ),
        "an alpha that is infinite": (
            "invalid_config",
            two_files(json.dumps(good | {"lora_alpha": float("inf")}).encode(), weights),
        ),
        "a pickle beside it": (
            "unsupported_format",
            [*two_files(good, weights), ("files", ("adapter_model.bin", b"\x80\x04."))],
        ),
        "no weights": ("missing_file", two_files(good, weights)[:1]),
    }


def test_the_engine_survives_every_bad_upload_and_answers_as_before(server: RealServer, tiny_base: Base) -> None:
    golden = [text_of(chat(server, server.acme)), text_of(chat(server, server.acme, adapter="support"))]
    resident = leases(server).keys()

    with server.client(server.acme) as client:
        for name, (code, files) in bad_uploads(tiny_base).items():
            answer = client.post("/admin/v1/tenants/acme/adapters/bad/versions?promote=true", files=files)
            assert 400 <= answer.status_code < 500, (name, answer.text)
            assert answer.json()["error"]["code"] == code, (name, answer.text)
            assert [text_of(chat(server, server.acme)), text_of(chat(server, server.acme, adapter="support"))] == golden
        assert client.get("/admin/v1/tenants/acme/adapters/bad/versions").status_code == 404

    assert leases(server).keys() == resident
    assert chat(server, server.acme, adapter="bad").status_code == 404


def test_the_strongest_adapter_that_the_gate_takes_spoils_no_other_answer(
    server: RealServer, tiny_base: Base, tmp_path: Path
) -> None:
    """A value that is no number would stay in freed blocks of the shared cache and reach the next tenant."""
    golden = [text_of(chat(server, server.acme)), text_of(chat(server, server.acme, adapter="support"))]
    folder = make_adapter_folder(
        tmp_path / "loud", tiny_base, modules=ALL_LINEAR, seed=3, strength=JUST_BELOW_THE_BOUND
    )
    server.publish("globex", "loud", folder)

    long = [{"role": "user", "content": "Where is my order? " * 20}]
    loud = [chat(server, server.globex, adapter="loud", messages=long, logprobs=True) for _ in range(4)]

    assert all(answer.status_code == 200 for answer in loud)
    assert [text_of(chat(server, server.acme)), text_of(chat(server, server.acme, adapter="support"))] == golden
    for _ in range(8):
        assert text_of(chat(server, server.acme, messages=long))
        assert text_of(chat(server, server.acme)) == golden[0]


def test_an_upload_is_probed_promoted_and_answers_at_once(server: RealServer, tiny_base: Base, tmp_path: Path) -> None:
    folder = make_adapter_folder(tmp_path / "fresh", tiny_base, modules=ALL_LINEAR, seed=7, strength=1.0)
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            tar.add(folder / name, name)

    with server.client(server.globex) as client:
        made = client.post(
            "/admin/v1/tenants/globex/adapters/fresh/versions?promote=true",
            content=archive.getvalue(),
            headers={"content-type": "application/gzip"},
        )
        metrics = httpx.get(f"{server.url}/metrics", headers={"authorization": f"Bearer {server.platform}"}).text

    assert made.status_code == 201, made.text
    assert made.json()["state"] == "ready"
    assert text_of(chat(server, server.globex, adapter="fresh")) != text_of(chat(server, server.globex))
    assert chat(server, server.acme, adapter="fresh").status_code == 404
    assert "vllm:lora_requests_info" not in metrics
    assert "vllm:generation_tokens_total" in metrics


def test_the_metrics_tell_tenants_and_adapters_apart(server: RealServer) -> None:
    chat(server, server.acme, adapter="support")
    chat(server, server.globex)

    with server.client(server.platform) as client:
        lines = client.get("/metrics").text.splitlines()

    for tenant, adapter, version in (("acme", "support", "1"), ("globex", "base", "")):
        for kind in ("prompt", "completion"):
            labels = f'adapter="{adapter}",kind="{kind}",tenant="{tenant}",version="{version}"'
            (value,) = [
                line.rpartition(" ")[2] for line in lines if line.startswith(f"lorikeet_tokens_total{{{labels}}}")
            ]
            assert float(value) > 0
