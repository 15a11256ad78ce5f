import json
import shutil
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.architectures import make_peft_adapter
from tests.tiny_model import make_tiny_checkpoint
from tests.trainer.conftest import Command, WriteJob
from trainer.judging.comparison import Comparison, Trained, comparison_lines, comparison_page, differing_keys


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    return make_peft_adapter(tiny, tmp_path / "support", strength=0.1)


@pytest.fixture
def merged(tiny: Path, adapter: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "merged"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), adapter).merge_and_unload()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("registry")
def test_a_merged_model_answers_as_its_adapter_does(
    lorikeet: Command, adapter: Path, merged: Path, tmp_path: Path
) -> None:
    outcome = lorikeet(
        "train", "compare", adapter, merged, "--base", "tiny", "--html", tmp_path / "beside.html", "--json"
    )

    assert outcome.code == 0, outcome.err
    near = outcome.json["closeness"]
    assert near["top1_agreement"] == 1
    assert near["largest"] < 1e-3
    assert near["kl_per_token"] < 1e-6
    assert "merged" in (tmp_path / "beside.html").read_text()


def test_an_adapter_is_not_its_base(lorikeet: Command, adapter: Path, tiny: Path) -> None:
    near = lorikeet("train", "compare", adapter, tiny, "--base", "tiny", "--json").json["closeness"]

    assert near["largest"] > 1e-3
    assert near["kl_per_token"] > 0


def test_both_are_judged_on_the_same_examples(
    lorikeet: Command, write_job: WriteJob, adapter: Path, merged: Path, tmp_path: Path
) -> None:
    write_job()
    quick = ("--set", "judge.regression=false", "--set", "judge.max_new_tokens=4")

    outcome = lorikeet(
        "train", "compare", adapter, merged, "--base", "tiny", "--data", tmp_path / "chat.jsonl", *quick, "--no-logits"
    )

    assert outcome.code == 0, outcome.err
    assert "loss" in outcome.out
    assert "logits" not in outcome.out
    assert "better" not in outcome.out
    assert "worse" not in outcome.out


def test_models_of_other_vocabularies_are_not_compared(lorikeet: Command, tiny: Path, tmp_path: Path) -> None:
    other = make_tiny_checkpoint(tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(other)
    model.resize_token_embeddings(512, mean_resizing=False)
    model.save_pretrained(other)

    outcome = lorikeet("train", "compare", tiny, other)

    assert outcome.code == 2
    assert "vocabularies" in outcome.err


def test_what_two_runs_did_otherwise_is_shown(lorikeet: Command, tiny: Path, tmp_path: Path) -> None:
    for name, rank, loss in (("first", 4, 2.0), ("second", 8, 1.0)):
        run = tmp_path / name
        shutil.copytree(make_peft_adapter(tiny, tmp_path / "made" / name), run / "adapter")
        (run / "job.yaml").write_text(f"rank: {rank}\nalpha: 8.0\njudge:\n  max_examples: {rank}\n")
        (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": loss}) + "\n")

    outcome = lorikeet("train", "compare", tmp_path / "first", tmp_path / "second", "--base", "tiny", "--no-logits")

    assert outcome.code == 0, outcome.err
    assert "rank: 4 → 8" in outcome.out
    assert "judge.max_examples: 4 → 8" in outcome.out
    assert "alpha" not in outcome.out
    assert "second: 1 steps, loss 1.000" in outcome.out


def test_keys_that_one_job_has_alone_differ() -> None:
    assert differing_keys({"a": 1, "b": {"c": 2}}, {"a": 1, "d": 3}) == {"b.c": (2, None), "d": (None, 3)}
    assert differing_keys({}, {"a": 1}) == {}


def test_nothing_known_is_said_to_be_nothing() -> None:
    nothing = Comparison(
        first=Trained(label="<a>"), second=Trained(label="b"), differing={}, closeness=None, report=None
    )

    assert "nothing is known" in comparison_lines(nothing)
    assert "<a>" not in comparison_page(nothing)
