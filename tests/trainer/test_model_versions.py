"""A job whose base is a `merged` or `full` version: it is trained on that version's files, and belongs to it."""

from pathlib import Path

import pytest

from adapters import Caller, Kind, Registry, folder_members
from tests.builders import folder_of
from tests.tiny_model import make_tiny_checkpoint
from tests.trainer.conftest import Command, WriteJob
from trainer.recipes import sft
from trainer.recipes.task import Task, Trained

OPERATOR = Caller.operator()
MODEL = "acme/model@1"


@pytest.fixture
def model(registry: Registry, tmp_path: Path) -> str:
    """The fingerprint of a model that was made from the base tiny."""
    tuned = make_tiny_checkpoint(tmp_path / "tuned", seed=1)
    members = folder_members(tuned)
    version = registry.versions.publish(OPERATOR, "acme", "model", members, base="tiny", kind=Kind.FULL).version
    fingerprint = version.manifest.model_fingerprint
    assert fingerprint is not None
    return fingerprint


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the bases that were trained on."""
    seen: list[Path] = []
    train = sft.train

    def noted(task: Task) -> Trained:
        seen.append(task.base_folder)
        return train(task)

    monkeypatch.setattr(sft, "train", noted)
    return seen


def test_a_job_is_trained_on_the_models_files_and_its_adapter_belongs_to_the_model(
    lorikeet: Command, write_job: WriteJob, registry: Registry, model: str, trained_on: list[Path]
) -> None:
    shown = lorikeet("train", "run", write_job(base=MODEL), "--publish", "acme/support", "--promote", "--json")
    assert (shown.code, shown.json["version"]) == (0, "acme/support@1"), shown.err
    version = registry.versions.get(OPERATOR, "acme", "support", 1)
    assert (version.manifest.base_fingerprint, version.origin["base"]) == (model, MODEL)
    assert version.parents == (MODEL,)
    line = registry.versions.lineage(OPERATOR, "acme", "support", 1)
    assert [one.label for one in line] == ["acme/support@1", MODEL]
    digest = registry.versions.get(OPERATOR, "acme", "model", 1).manifest.digest
    assert trained_on == [folder_of(registry, digest)]


def test_another_tenants_adapter_names_the_model_in_its_origin_alone(
    lorikeet: Command, write_job: WriteJob, registry: Registry, model: str
) -> None:
    registry.tenants.create(OPERATOR, "globex")
    assert lorikeet("train", "run", write_job(base=MODEL), "--publish", "globex/support").code == 0
    version = registry.versions.get(OPERATOR, "globex", "support", 1)
    assert (version.manifest.base_fingerprint, version.origin["base"], version.parents) == (model, MODEL, ())


def test_a_run_on_the_model_is_another_than_one_on_its_base(lorikeet: Command, write_job: WriteJob, model: str) -> None:
    assert model
    on_base = lorikeet("train", "run", write_job(), "--json").json
    on_model = lorikeet("train", "run", write_job(base=MODEL), "--reuse", "--json").json
    assert (on_model["reused"], on_model["run"] != on_base["run"]) == (False, True)


def test_a_base_that_is_an_adapter_or_was_retired_is_no_base(
    lorikeet: Command, write_job: WriteJob, registry: Registry, model: str, home: Path
) -> None:
    lorikeet("train", "run", write_job(), "--publish", "acme/support")
    registry.versions.retire(OPERATOR, "acme", "model", 1)
    runs = sorted((home / "runs").iterdir())
    for base in ("acme/support@1", "acme/model@2", MODEL, model):
        shown = lorikeet("train", "run", write_job(base=base))
        assert (shown.code, "[base_not_found]" in shown.err) == (2, True), shown.err
    assert sorted((home / "runs").iterdir()) == runs
