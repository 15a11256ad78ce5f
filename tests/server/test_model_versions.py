"""A server that was started on a `merged` or `full` version: the base is a version, and only its tenant's."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from adapters import Base, Kind, Registry, folder_members, open_registry
from lorikeet import main
from server.engine.fake import BASE_MARK, FakeEngine
from server.errors import SettingsError
from tests.builders import folder_of, make_adapter_folder
from tests.live_server import free_port
from tests.server.administering import ACME, call
from tests.server.models import add_base, publish_models, serving
from tests.server.uploading import as_multipart, files_of
from tests.server.world import OPERATOR, World

MODEL = "acme/model@2"


@pytest.fixture
def served(world: World, tmp_path: Path) -> Iterator[World]:
    """Serves the second of two versions of acme/model. `world` is another server, on another base."""
    add_base(world.registry, tmp_path / "base")
    publish_models(world.registry, tmp_path)
    with serving(world, MODEL) as served:
        yield served


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_the_base_answers_its_tenant_and_says_which_version_it_is(served: World) -> None:
    served.registry.aliases.promote(OPERATOR, "acme", "model", 2)
    for name in (None, MODEL, "model@2", "model", "acme/model", "acme/model@live"):
        for answer in (served.ask(name), served.ask(model=name)):
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-lorikeet-adapter"] == MODEL
            assert served.marks(answer.json()["choices"][0]["message"]["content"]) == {BASE_MARK}


def test_for_others_there_is_no_such_model_whatever_they_write(served: World) -> None:
    nobodys = served.ask("nothing-at-all", key="zoo")
    for fields in ({}, {"model": MODEL}, {"adapter": MODEL}, {"adapter": "acme/model"}, {"adapter": "acme/none@2"}):
        answer = served.ask(key="zoo", **fields)
        assert (answer.status_code, answer.content) == (404, nobodys.content)
        assert "x-lorikeet-adapter" not in answer.headers
    assert served.engine.seen_bodies == []


def test_no_name_beside_an_adapters_tells_what_is_served(served: World) -> None:
    served.publish("zoo", "support", seed=1)
    for adapter in ("nothing-at-all", "support"):
        answers = [served.ask(adapter, key="zoo", model=model) for model in (MODEL, "acme/model@1", "acme/none@2")]
        assert {refusal(answer) for answer in answers} == {(400, "conflicting_names")}
        assert len({answer.content for answer in answers}) == 1


def test_who_was_granted_the_model_is_answered_until_the_grant_is_taken(served: World) -> None:
    served.registry.grants.give(OPERATOR, "acme", "model", "zoo")
    answer = served.ask(key="zoo")
    assert (answer.status_code, answer.headers["x-lorikeet-adapter"]) == (200, MODEL)
    line = 'lorikeet_requests_total{adapter="acme/model",outcome="ok",tenant="zoo",version="2"}'
    assert served.metric(line) == 1
    served.registry.grants.take(OPERATOR, "acme", "model", "zoo")
    assert served.ask(key="zoo").status_code == 404


def test_a_model_that_was_retired_answers_nobody_until_it_is_restored(served: World) -> None:
    served.registry.versions.retire(OPERATOR, "acme", "model", 2)
    assert refusal(served.ask()) == (404, "adapter_not_found")
    served.registry.versions.restore(OPERATOR, "acme", "model", 2)
    assert served.ask().status_code == 200


def test_what_the_served_model_is_not_is_409(served: World, world: World) -> None:
    world.publish("acme", "support", seed=1)
    for name in ("model@1", "support"):
        assert refusal(served.ask(name)) == (409, "base_mismatch")
    assert refusal(world.ask("model@2")) == (409, "base_mismatch")
    assert world.ask("support").status_code == 200


def test_an_adapter_that_was_made_for_the_model_is_served_on_it(served: World) -> None:
    folder = served.make_folder(seed=1)
    answer = call(served, "POST", f"{ACME}/adapters/support/versions?promote=true", **as_multipart(files_of(folder)))
    assert (answer.status_code, answer.json()["base"]) == (201, served.base.fingerprint)
    assert served.ask("support").headers["x-lorikeet-adapter"] == "acme/support@1"
    assert BASE_MARK not in served.answer_marks("support")
    by_name = call(served, "POST", f"{ACME}/adapters/sales/versions?base={MODEL}", **as_multipart(files_of(folder)))
    assert by_name.json()["base"] == served.base.fingerprint


def test_who_may_not_ask_the_model_makes_no_adapter_for_it(served: World) -> None:
    upload = as_multipart(files_of(served.make_folder(seed=1)))
    for query in ("", f"?base={MODEL}"):
        path = f"/admin/v1/tenants/zoo/adapters/support/versions{query}"
        answer = call(served, "POST", path, "zoo-admin", **upload)
        assert refusal(answer) == (404, "base_not_found")
        assert served.base.fingerprint not in answer.text


def test_another_tenants_adapter_on_the_model_answers_as_long_as_its_grant(served: World) -> None:
    served.registry.grants.give(OPERATOR, "acme", "model", "zoo")
    served.publish("zoo", "support", seed=1)
    assert BASE_MARK not in served.answer_marks("support", key="zoo")
    served.registry.grants.take(OPERATOR, "acme", "model", "zoo")
    assert refusal(served.ask("support", key="zoo")) == (409, "base_mismatch")


def test_an_adapter_on_the_model_may_be_granted_without_the_model(served: World) -> None:
    served.publish("acme", "support", seed=1)
    served.registry.grants.give(OPERATOR, "acme", "support", "zoo")
    assert served.ask("acme/support", key="zoo").headers["x-lorikeet-adapter"] == "acme/support@1"
    assert served.ask(key="zoo").status_code == 404


def test_the_model_is_listed_for_those_who_may_ask_it(served: World) -> None:
    served.publish("zoo", "support", seed=1)  # on it, as if it had been granted then
    listed = {}
    for key in ("acme", "zoo"):
        with served.client(key) as client:
            listed[key] = [(model["id"], model.get("parent")) for model in client.get("/v1/models").json()["data"]]
    assert listed == {"acme": [(MODEL, None)], "zoo": []}


def test_a_model_is_promoted_and_rolled_back_without_being_loaded(served: World) -> None:
    path = f"{ACME}/adapters/model/aliases/live"
    for number in (2, 1, 2):
        assert call(served, "PUT", path, json={"version": number}).json()["version"] == number
    assert call(served, "POST", f"{ACME}/adapters/model/rollback").json()["version"] == 1
    assert refusal(served.ask("model")) == (409, "base_mismatch")
    assert served.engine.loads == []


def test_two_versions_with_the_same_bytes_are_each_served_under_their_own_name(world: World, tmp_path: Path) -> None:
    add_base(world.registry, tmp_path / "base")
    (version,) = publish_models(world.registry, tmp_path, count=1)
    zoos = world.registry.versions.publish(
        *(OPERATOR, "zoo", "copy", folder_members(tmp_path / "model-1")), base="whole", kind=Kind.MERGED
    ).version
    assert zoos.manifest.digest == version.manifest.digest
    with serving(world, "zoo/copy@1") as served:
        assert served.ask(key="zoo").headers["x-lorikeet-adapter"] == "zoo/copy@1"
        assert served.ask(key="acme").status_code == 404


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry with two versions of acme/model, and acme/support@1."""
    monkeypatch.setenv("LORIKEET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("server.cli.prepare_environment", lambda: None)  # it sets variables for the whole process
    with open_registry(tmp_path / "home") as registry:
        registry.tenants.create(OPERATOR, "acme")
        base = add_base(registry, tmp_path / "base")
        publish_models(registry, tmp_path)
        folder = make_adapter_folder(tmp_path / "adapter", base)
        registry.versions.publish(OPERATOR, "acme", "support", folder_members(folder), base="whole")
    return tmp_path / "home"


def _damage(registry: Registry) -> None:
    version = registry.versions.get(OPERATOR, "acme", "model", 2)
    config = folder_of(registry, version.manifest.digest) / "config.json"
    config.chmod(0o644)
    config.write_bytes(config.read_bytes() + b" ")


def _retire(registry: Registry) -> None:
    registry.versions.retire(OPERATOR, "acme", "model", 2)


def _fingerprint(registry: Registry) -> str:
    return registry.bases.find(OPERATOR, MODEL).fingerprint


@pytest.mark.parametrize(
    ("reference", "spoil", "code"),
    [
        ("acme/model@3", None, "base_not_found"),
        ("acme/none@1", None, "base_not_found"),
        ("acme/model", None, "base_not_found"),
        ("acme/support@1", None, "base_not_found"),
        (MODEL, _retire, "base_not_found"),
        (None, _retire, "base_not_found"),
        (MODEL, _damage, "blob_damaged"),
    ],
)
def test_a_model_that_can_not_be_served_is_named_in_one_line(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reference: str | None,
    spoil: Callable[[Registry], None] | None,
    code: str,
) -> None:
    with open_registry(home) as registry:
        reference = reference or _fingerprint(registry)
        if spoil is not None:
            spoil(registry)
    monkeypatch.setattr(sys, "argv", ["lorikeet", "serve", "--base", reference, "--port", str(free_port())])
    with pytest.raises(SystemExit) as left:
        main()
    told = capsys.readouterr().err
    assert (left.value.code, told.count("\n"), f"[{code}]" in told) == (2, 1, True), told
    assert str(home) not in told


def test_the_engine_is_started_on_the_models_own_files_which_are_held(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Base, list[str]]] = []

    def build(_settings: object, base: Base, _rank: int) -> FakeEngine:
        seen.append((base, sorted(path.name for path in Path(base.path).iterdir())))
        raise SettingsError("enough")

    monkeypatch.setattr("server.running.build_engine", build)
    monkeypatch.setattr(sys, "argv", ["lorikeet", "serve", "--base", MODEL, "--port", str(free_port())])
    with pytest.raises(SystemExit):
        main()
    ((base, files),) = seen
    assert (base.name, base.version, base.modules != {}) == (MODEL, MODEL, True)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert Path(base.path).is_relative_to(home / "store")
