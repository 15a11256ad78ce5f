"""The loop as a whole: from a job file to a live version, or to the reason why not."""

import json
from pathlib import Path

import pytest

from adapters import Caller, Kind, Registry
from tests.task import METHODS, write_task
from tests.trainer.conftest import Command

OPERATOR = Caller.operator()
EXACT: dict[str, object] = {"min_metrics": {"exact_match": 0.9}}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_a_task_and_its_version_is_live(
    lorikeet: Command, tmp_path: Path, registry: Registry, method: str
) -> None:
    job = write_task(tmp_path, **METHODS[method], judge=EXACT)
    shown = lorikeet("train", "run", job, "--publish", "acme/aye", "--promote", "--json")
    assert (shown.code, shown.json["live"]) == (0, True), shown.err
    before, after = (shown.json["report"][side]["metrics"]["exact_match"] for side in ("base", "result"))
    assert (before, after) == (0.0, 1.0)
    version = registry.versions.get(OPERATOR, "acme", "aye", 1)
    assert version.manifest.kind is (Kind.FULL if method == "full" else Kind.LORA)
    assert version.origin["report"]["passed"] is True
    converted = version.origin["conversion"]
    assert (converted is not None) == (method in {"dora", "adalora", "pissa"})


def test_what_did_not_pass_is_published_and_not_live(lorikeet: Command, tmp_path: Path, registry: Registry) -> None:
    job = write_task(tmp_path, max_steps=3, learning_rate=1e-6, judge=EXACT)
    shown = lorikeet("train", "run", job, "--publish", "acme/aye", "--promote", "--json")
    assert (shown.code, shown.json["version"], shown.json["live"]) == (1, "acme/aye@1", False), shown.err
    assert "exact_match" in shown.json["not_live_because"]
    assert "not live: " in shown.err
    assert registry.adapters.get(OPERATOR, "acme", "aye").live_version is None


def test_the_run_folder_holds_what_was_checked_held_out_and_judged(lorikeet: Command, tmp_path: Path) -> None:
    folder = Path(lorikeet("train", "run", write_task(tmp_path, max_steps=3), "--json").json["run"])
    held_out = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    counts = json.loads((folder / "data.json").read_text())
    assert (counts["train"]["rows"] + counts["held_out"]["rows"], counts["held_out"]["rows"]) == (24, len(held_out))
    assert json.loads((folder / "report.json").read_text())["counts"]
    for page in ("data.html", "report.html"):
        text = (folder / page).read_text()
        assert text.startswith("<!doctype html>")
        assert "<svg" in text


def test_a_finished_run_found_again_has_its_report(lorikeet: Command, tmp_path: Path) -> None:
    job = write_task(tmp_path, max_steps=3)
    first = lorikeet("train", "run", job, "--json").json
    again = lorikeet("train", "run", job, "--reuse", "--json").json
    assert (again["reused"], again["report"]) == (True, first["report"])
