"""A server whose base is a version in fewer bits: it takes the adapters of its original, and says so."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters import Base, Kind, VersionState, folder_members
from server.engine.fake import BASE_MARK
from tests.adapters.test_gate_quantized import BASE, quantised_folder
from tests.builders import make_adapter_folder
from tests.quantising import W4A16
from tests.server.administering import ACME, call
from tests.server.models import serving
from tests.server.test_model_versions import refusal
from tests.server.uploading import as_multipart, files_of
from tests.server.world import ACCEPTED, OPERATOR, World

MODEL = "acme/small@1"
WARNING = "x-lorikeet-warning"


@pytest.fixture
def served(world: World, tmp_path: Path) -> Iterator[World]:
    """Serves acme/small@1, which was quantised from a base of the platform's."""
    world.registry.bases.add(OPERATOR, BASE)
    small = folder_members(quantised_folder(tmp_path / "small", W4A16))
    world.registry.versions.publish(OPERATOR, "acme", "small", small, base=BASE.fingerprint, kind=Kind.MERGED)
    with serving(world, MODEL) as served:
        yield served


def publish(world: World, tenant: str, name: str, base: Base, tmp_path: Path, *, is_probed: bool = True) -> None:
    folder = make_adapter_folder(tmp_path / f"{tenant}-{name}", base, seed=1)
    probe = (lambda *_: ACCEPTED) if is_probed else None
    publish = world.registry.versions.publish
    published = publish(OPERATOR, tenant, name, folder_members(folder), base=base.fingerprint, probe=probe)
    world.registry.aliases.promote(OPERATOR, tenant, name, published.version.number)


def test_an_adapter_of_the_original_answers_and_the_answer_says_that_its_base_is_another(
    served: World, tmp_path: Path
) -> None:
    publish(served, "acme", "support", BASE, tmp_path)
    answer = served.ask("support")
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-lorikeet-adapter"] == "acme/support@1"
    assert answer.headers[WARNING] == "base_quantised"
    assert BASE_MARK not in served.answer_marks("support")


def test_the_model_itself_and_an_adapter_made_for_it_come_without_the_warning(served: World, tmp_path: Path) -> None:
    publish(served, "acme", "own", served.base, tmp_path)
    for name in (None, "own"):
        answer = served.ask(name)
        assert answer.status_code == 200, answer.text
        assert WARNING not in answer.headers


def state_of(world: World, tenant: str = "acme") -> VersionState:
    return world.registry.versions.get(OPERATOR, tenant, "support", 1).state


@pytest.mark.parametrize("is_sane", [True, False])
def test_what_is_found_on_fewer_bits_is_no_word_on_the_original(served: World, tmp_path: Path, is_sane: bool) -> None:  # noqa: FBT001
    publish(served, "acme", "support", BASE, tmp_path, is_probed=False)
    served.engine.samples_nan = not is_sane
    assert (served.ask("support").status_code == 200) is is_sane
    assert state_of(served) is VersionState.UNPROBED
    served.engine.samples_nan = False
    assert served.ask("support").status_code == 200


def test_an_upload_for_the_original_is_judged_where_the_original_is_and_may_become_live_here(
    served: World, tmp_path: Path
) -> None:
    folder = make_adapter_folder(tmp_path / "lora", BASE, seed=1)
    path = f"{ACME}/adapters/support/versions?promote=true&base={BASE.fingerprint}"
    answer = call(served, "POST", path, "platform", **as_multipart(files_of(folder)))
    assert answer.status_code == 201, answer.text
    assert answer.json()["base"] == BASE.fingerprint
    assert (answer.json()["state"], answer.json()["warnings"]) == ("unprobed", [])
    assert served.ask("support").headers[WARNING] == "base_quantised"


def test_an_upload_for_the_original_that_fails_here_does_not_become_live_and_is_not_rejected(
    served: World, tmp_path: Path
) -> None:
    folder = make_adapter_folder(tmp_path / "lora", BASE, seed=1)
    path = f"{ACME}/adapters/support/versions?promote=true&base={BASE.fingerprint}"
    served.engine.samples_nan = True
    assert call(served, "POST", path, "platform", **as_multipart(files_of(folder))).status_code >= 400
    assert state_of(served) is VersionState.UNPROBED
    assert served.registry.adapters.get(OPERATOR, "acme", "support").live is None


def test_whom_the_model_is_not_for_is_not_answered_with_it(served: World, tmp_path: Path) -> None:
    publish(served, "zoo", "support", BASE, tmp_path)
    assert refusal(served.ask("support", key="zoo")) == (409, "base_mismatch")
    with served.client("zoo") as client:
        assert client.get("/v1/models").json()["data"] == []


ZOO = "/admin/v1/tenants/zoo"


def test_whom_the_model_is_not_for_uploads_as_for_any_other_base(served: World, tmp_path: Path) -> None:
    upload = as_multipart(files_of(make_adapter_folder(tmp_path / "lora", BASE, seed=1)))
    path = f"{ZOO}/adapters/support/versions?base={BASE.fingerprint}"
    served.engine.samples_nan = True
    answer = call(served, "POST", path, "zoo-admin", **upload)
    assert (answer.status_code, answer.json()["state"]) == (201, "unprobed")
    assert refusal(call(served, "POST", f"{path}&promote=true", "zoo-admin", **upload)) == (409, "base_mismatch")
    assert served.engine.loads == []


def test_whom_the_model_is_not_for_promotes_as_for_any_other_base(served: World, tmp_path: Path) -> None:
    folder = make_adapter_folder(tmp_path / "lora", BASE, seed=1)
    served.registry.versions.publish(OPERATOR, "zoo", "support", folder_members(folder), base=BASE.fingerprint)
    served.engine.samples_nan = True
    answer = call(served, "PUT", f"{ZOO}/adapters/support/aliases/live", "zoo-admin", json={"version": 1})
    assert refusal(answer) == (409, "base_mismatch")
    assert state_of(served, "zoo") is VersionState.UNPROBED
    assert served.engine.loads == []


def test_what_was_granted_by_whom_the_model_is_not_for_is_neither_listed_nor_answered(
    served: World, tmp_path: Path
) -> None:
    publish(served, "zoo", "support", BASE, tmp_path)
    served.registry.grants.give(OPERATOR, "zoo", "support", "acme")
    with served.client() as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [MODEL]
    assert refusal(served.ask("zoo/support")) == (409, "base_mismatch")


def test_the_models_of_the_original_are_listed(served: World, tmp_path: Path) -> None:
    publish(served, "acme", "support", BASE, tmp_path)
    with served.client() as client:
        assert {model["id"] for model in client.get("/v1/models").json()["data"]} == {MODEL, "support"}
