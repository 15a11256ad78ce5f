"""Asking the base and adapters: who answers, in which shape, and what the engine is given."""

import json
from dataclasses import replace
from functools import partial

import pytest
from openai import NotFoundError
from starlette.applications import Starlette

from adapters import Caller, ProbeVerdict, Version, folder_members
from server.engine.fake import BASE_MARK
from tests.builders import folder_of, make_adapter_folder, make_base
from tests.server.world import OPERATOR, World, in_thread, wait_until


def test_a_request_without_an_adapter_is_answered_by_the_base_and_says_so_by_no_header(world: World) -> None:
    response = world.ask()
    assert world.marks(response.json()["choices"][0]["message"]["content"]) == {BASE_MARK}
    assert "x-lorikeet-adapter" not in response.headers
    assert response.headers["x-request-id"].startswith("req-")


def test_each_name_is_answered_by_its_own_adapter(world: World) -> None:
    world.publish("acme", "support", seed=1)
    world.publish("acme", "sales", seed=2)
    support, sales = world.answer_marks("support"), world.answer_marks("sales")
    assert len(support) == len(sales) == 1
    assert len(support | sales | {BASE_MARK}) == 3
    assert world.answer_marks() == {BASE_MARK}


@pytest.mark.parametrize("name", ["support", "support@1", "support@live", "acme/support", "acme/support@1"])
def test_the_ways_to_name_a_version_all_answer_with_its_label(world: World, name: str) -> None:
    world.publish("acme", "support", seed=1)
    response = world.ask(name)
    assert response.status_code == 200
    assert response.headers["x-lorikeet-adapter"] == "acme/support@1"


def test_model_names_an_adapter_for_clients_that_cannot_add_a_field(world: World) -> None:
    world.publish("acme", "support", seed=1)
    assert world.ask(model="support").headers["x-lorikeet-adapter"] == "acme/support@1"
    assert world.ask("support", model=world.base.name).headers["x-lorikeet-adapter"] == "acme/support@1"
    assert world.ask("support", model="support").status_code == 200
    assert "x-lorikeet-adapter" not in world.ask(model=world.base.name).headers


def test_the_openai_client_streams_and_counts(world: World) -> None:
    world.publish("acme", "support", seed=1)
    with world.openai() as client:
        whole = client.chat.completions.create(model="support", messages=[{"role": "user", "content": "hi"}], n=2)
        stream = client.chat.completions.create(
            model=world.base.name,
            messages=[{"role": "user", "content": "hi"}],
            extra_body={"adapter": "support"},
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said.split() == (whole.choices[0].message.content or "").split()
    assert len({choice.message.content for choice in whole.choices}) == 2
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(said.split())


def test_completions_are_served_too(world: World) -> None:
    world.publish("acme", "support", seed=1)
    with world.openai() as client:
        answer = client.completions.create(model="support", prompt="The city of Lyon", max_tokens=3)
    assert world.marks(answer.choices[0].text) == world.answer_marks("support")


def test_anthropics_header_carries_a_key_as_well(world: World) -> None:
    with world.client(None) as client:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        assert client.post("/v1/chat/completions", json=body, headers={"x-api-key": world.keys["acme"]}).is_success


def test_a_missing_adapter_and_another_tenants_are_the_same_answer_byte_for_byte(world: World) -> None:
    world.publish("zoo", "keeper", seed=1)
    answers = [world.ask(name) for name in ("keeper", "keeper@1", "nobody", "nobody@7")]
    answers += [world.ask(model=name) for name in ("keeper", "nobody", "zoo/keeper", "nowhere/keeper")]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].json()["error"]["code"] == "adapter_not_found"
    assert world.answer_marks("keeper", key="zoo") != {BASE_MARK}
    with world.openai() as client, pytest.raises(NotFoundError):
        client.chat.completions.create(model="keeper", messages=[{"role": "user", "content": "hi"}])


def test_an_adapter_of_another_base_is_refused_by_name(world: World) -> None:
    other = world.registry.bases.add(OPERATOR, make_base("other", layers=3))
    folder = make_adapter_folder(world.folder / "other", other, seed=1)
    world.registry.versions.publish(OPERATOR, "acme", "foreign", folder_members(folder), base=other.fingerprint)
    world.registry.aliases.promote(OPERATOR, "acme", "foreign", 1)
    response = world.ask("foreign")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "base_mismatch")


def test_the_engine_sees_our_salt_and_our_headers_and_nothing_that_is_not_the_clients(world: World) -> None:
    world.publish("acme", "support", seed=1)
    sent = {"x-vllm-priority": "-5", "x-data-parallel-rank": "1", "x-session-id": "s", "x-request-id": "mine"}
    with world.client("acme") as client:
        body = {"messages": [{"role": "user", "content": "hi"}], "adapter": "support", "store": False, "user": "u"}
        assert client.post("/v1/chat/completions?priority=1", json=body, headers=sent).is_success
    world.ask("support")
    world.ask(key="zoo")
    first, second, other = world.engine.seen_bodies
    assert set(first) == {"messages", "user", "model", "cache_salt"}
    assert first["model"] == world.base.name
    assert first["cache_salt"] == second["cache_salt"] != other["cache_salt"]
    headers = world.engine.seen_headers[0]
    assert set(headers) == {"host", "content-type", "content-length", "x-request-id"}
    assert headers["x-request-id"] != "mine"


def test_an_error_of_the_engines_app_comes_in_our_shape_and_without_its_paths(world: World) -> None:
    response = world.ask(max_tokens=100_000)
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "context_length_exceeded"
    assert "/opt" not in error["message"]


def test_a_stream_that_the_engine_breaks_off_ends_in_an_error_of_ours_and_counts_as_failed(world: World) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1900, "stream": True}
    with world.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()
        assert "choices" in next(lines)
        world.engine.kill()
        events = [line for line in lines if "error" in line]
    assert [json.loads(event.removeprefix("data: "))["error"]["code"] for event in events] == ["engine_unavailable"]
    wait_until(lambda: world.metric('lorikeet_requests_total{adapter="base",outcome="failed"') == 1)


def test_the_engine_is_told_to_store_no_response(world: World) -> None:
    with world.client() as client:
        for fields in ({}, {"store": False}):
            assert client.post("/v1/responses", json={"input": "hi", **fields}).is_success
        assert client.post("/v1/responses", json={"input": "hi", "store": True}).status_code == 400
    assert [body["store"] for body in world.engine.seen_bodies] == [False, False]


def test_a_route_that_the_engine_lacks_is_a_404_in_our_shape(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.engine, "asgi", Starlette())
    with world.client() as client:
        response = client.post("/v1/embeddings", json={"input": "hi"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


def test_a_dead_engine_is_503_to_come_back_to_and_not_ready(world: World) -> None:
    with world.client() as client:
        assert client.get("/readyz").is_success
        world.engine.kill()
        response = world.ask()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
        assert response.headers["retry-after"]
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").is_success


def test_an_engine_that_dies_under_a_request_is_503(world: World) -> None:
    world.close_gate()
    with world.client() as client:
        request = client.build_request(
            "POST", "/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]}
        )
        answer = in_thread(lambda: client.send(request))
        wait_until(lambda: world.engine.running[BASE_MARK] == 1)
        world.engine.kill()
        world.open_gate()
        response = answer()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")


def test_more_adapters_at_once_than_slots_or_room_all_finish(world: World) -> None:
    names = [f"adapter-{index}" for index in range(8)]
    for seed, name in enumerate(names):
        world.publish("acme", name, seed=seed)
    answers = [in_thread(partial(world.answer_marks, name)) for name in names * 3]
    marks = [answer() for answer in answers]
    assert len({frozenset(mark) for mark in marks}) == len(names)
    assert all(len(mark) == 1 for mark in marks)
    assert len(world.engine.loaded) <= 3
    assert world.engine.health() == "ready"


def test_an_unprobed_version_is_probed_once_before_it_answers(world: World) -> None:
    version = world.publish("acme", "support", seed=1, is_probed=False)
    assert version.state == "unprobed"
    assert world.answer_marks("support") != {BASE_MARK}
    assert world.registry.versions.get(OPERATOR, "acme", "support", 1).state == "ready"


def test_an_unprobed_version_that_the_probe_refuses_is_rejected_and_never_answers(world: World) -> None:
    world.publish("acme", "support", seed=1, is_probed=False)
    world.engine.samples_nan = True
    refused, unknown = world.ask("support"), world.ask("nobody")
    assert refused.status_code == 404
    assert refused.content == unknown.content
    assert world.registry.versions.get(OPERATOR, "acme", "support", 1).state == "rejected"
    assert world.residency() == {}


def test_a_version_that_another_server_has_just_rejected_never_answers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish("acme", "support", seed=1, is_probed=False)
    record = world.registry.versions.record_probe

    def record_late(caller: Caller, version_id: int, verdict: ProbeVerdict) -> Version:
        record(caller, version_id, ProbeVerdict(is_accepted=False))
        return record(caller, version_id, verdict)

    monkeypatch.setattr(world.registry.versions, "record_probe", record_late)
    refused, unknown = world.ask("support"), world.ask("nobody")
    assert (refused.status_code, refused.content) == (404, unknown.content)
    assert world.residency() == {}


def test_an_unprobed_version_that_cannot_be_loaded_now_is_503_and_answers_later(world: World) -> None:
    world.publish("acme", "support", seed=1, is_probed=False)
    world.engine.refuses_loads = True
    response = world.ask("support")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "adapter_unavailable")
    assert world.registry.versions.get(OPERATOR, "acme", "support", 1).state == "unprobed"
    world.engine.refuses_loads = False
    assert world.answer_marks("support") != {BASE_MARK}


@pytest.mark.parametrize("is_probed", [True, False])
def test_a_version_of_a_higher_rank_than_is_served_is_409_and_stays_what_it_was(
    world: World,
    is_probed: bool,  # noqa: FBT001  — a case
) -> None:
    version = world.publish("acme", "support", seed=1, is_probed=is_probed, rank=32)
    response = world.ask("support")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "rank_unserved")
    assert world.registry.versions.get(OPERATOR, "acme", "support", 1).state == version.state


def test_an_unprobed_version_that_changes_nothing_is_served_with_a_warning(world: World) -> None:
    world.publish("acme", "support", seed=1, is_probed=False, strength=0)
    assert world.answer_marks("support") == {BASE_MARK}
    assert "adapter_is_noop" in world.registry.versions.get(OPERATOR, "acme", "support", 1).warnings


def test_a_probed_version_whose_files_were_lost_is_503_and_leaves_the_others_alone(world: World) -> None:
    lost = world.publish("acme", "lost", seed=1)
    world.publish("acme", "support", seed=2)
    folder = folder_of(world.registry, lost.manifest.digest)
    folder.chmod(0o700)
    (folder / "adapter_model.safetensors").unlink()
    response = world.ask("lost")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "adapter_unavailable")
    assert world.answer_marks("support") != {BASE_MARK}


def test_a_version_whose_files_have_changed_is_503_and_never_loaded(world: World) -> None:
    changed = world.publish("acme", "changed", seed=1)
    weights = folder_of(world.registry, changed.manifest.digest) / "adapter_model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    response = world.ask("changed")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "adapter_unavailable")
    assert world.engine.loads == []


def test_models_lists_the_base_and_the_callers_own_live_adapters(world: World) -> None:
    world.publish("acme", "support", seed=1)
    world.publish("acme", "draft", seed=2, promote=False)
    world.publish("zoo", "keeper", seed=3)
    with world.openai() as client:
        assert [model.id for model in client.models.list()] == [world.base.name, "support"]


def test_models_lists_no_name_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish("acme", "support", seed=1)
    monkeypatch.setattr(world.engine, "info", replace(world.engine.info, base_name="support"))
    with world.openai() as client:
        assert [model.id for model in client.models.list()] == ["support"]


def test_only_the_allow_listed_paths_reach_the_engine(world: World) -> None:
    with world.client() as client:
        for path in ("/invocations", "/tokenize", "/v1/load_lora_adapter", "/v1/chat/completions/", "/docs", "/pause"):
            response = client.post(path, json={})
            assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found"), path
        for method in ("GET", "PUT", "DELETE"):
            response = client.request(method, "/v1/chat/completions")
            assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")
    assert world.engine.seen_bodies == []
