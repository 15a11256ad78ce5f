import fcntl
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.utils import _telemetry
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters import Caller, Registry, Scope
from tests.trainer.conftest import Command, WriteJob
from trainer.dataset import read_dataset
from trainer.job import TrainJob
from trainer.run_folder import Metrics
from trainer.step import Step
from trainer.supervision import Example, supervise

ACME = Caller(tenant="acme", scopes=frozenset({Scope.INFER}), name="a user")


def only_run(home: Path) -> Path:
    (folder,) = (home / "runs").iterdir()
    return folder


def test_a_job_file_becomes_a_live_version(lorikeet: Command, write_job: WriteJob, registry: Registry) -> None:
    shown = lorikeet("train", "run", write_job(), "--publish", "acme/support", "--promote", "--json")

    assert (shown.code, shown.json["version"], shown.json["live"]) == (0, "acme/support@1", True)
    assert registry.resolve(ACME, "support").label == "acme/support@1"
    version = registry.versions.get(Caller.operator(), "acme", "support", 1)
    assert (version.manifest.rank, version.manifest.dtype) == (4, "BF16")
    assert version.origin["method"] == "lora"
    assert version.origin["dataset_fingerprint"].startswith("sha256:")
    assert version.origin["chat_template_digest"] == registry.bases.find(Caller.operator(), "tiny").chat_template_digest


def test_the_run_folder_tells_what_was_done(lorikeet: Command, write_job: WriteJob, home: Path) -> None:
    assert lorikeet("train", "run", write_job(checkpoint_steps=1)).code == 0
    folder = only_run(home)

    assert folder.name.startswith("job-")
    assert yaml.safe_load((folder / "job.yaml").read_text())["rank"] == 4
    assert json.loads((folder / "started.json").read_text())["job"]["schedule"] == "cosine"
    told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in told if line["event"] == "step"]
    assert [step["step"] for step in steps] == [1, 2]
    assert steps[1]["tokens"] > steps[0]["tokens"] > 0
    assert {file.name for file in (folder / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert {checkpoint.name for checkpoint in (folder / "checkpoints").glob("checkpoint-*")} == {
        "checkpoint-1",
        "checkpoint-2",
    }
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert str(home) not in json.dumps(config)


def test_the_same_job_data_and_base_give_the_same_adapter(lorikeet: Command, write_job: WriteJob, home: Path) -> None:
    job = write_job()
    lorikeet("train", "run", job)
    first = (only_run(home) / "adapter" / "adapter_model.safetensors").read_bytes()
    assert lorikeet("train", "run", job, "--json").json["reused"] is False
    assert (only_run(home) / "adapter" / "adapter_model.safetensors").read_bytes() == first


def test_training_lowers_the_loss_and_changes_the_adapter(lorikeet: Command, write_job: WriteJob, home: Path) -> None:
    lorikeet("train", "run", write_job(max_steps=12, batch_size=4, learning_rate=1e-2))
    told = [json.loads(line) for line in (only_run(home) / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in told if line["event"] == "step"]
    assert losses[-1] < losses[0] - 0.5
    weights = load_file(only_run(home) / "adapter" / "adapter_model.safetensors")
    assert len(weights) == 28
    assert all(tensor.abs().max() > 0 for tensor in weights.values())


@pytest.mark.parametrize("shape", [{"batch_size": 4}, {"batch_size": 1, "gradient_accumulation": 4}])
def test_the_loss_is_the_mean_over_the_learned_tokens(
    lorikeet: Command, write_job: WriteJob, home: Path, tiny: Path, shape: dict[str, Any]
) -> None:
    job = write_job(max_steps=1, precision="float32", **shape)
    lorikeet("train", "run", job)
    told = json.loads((only_run(home) / "metrics.jsonl").read_text().splitlines()[0])["loss"]

    tokenizer, model = AutoTokenizer.from_pretrained(tiny), AutoModelForCausalLM.from_pretrained(tiny)
    total = count = 0.0
    read = read_dataset(TrainJob(base="tiny", data="chat.jsonl"), job.parent).train
    for example in supervise(tokenizer, read, max_length=1000):
        assert isinstance(example, Example)
        labels = torch.tensor([example.labels])
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([example.input_ids]), labels=labels).loss.item()
        total, count = total + mean * example.learned, count + example.learned
    assert told == pytest.approx(total / count, abs=1e-3)


def test_a_finished_run_is_reused_and_published_as_the_same_version(lorikeet: Command, write_job: WriteJob) -> None:
    job = write_job()
    words = ("train", "run", job, "--reuse", "--publish", "acme/support", "--json")
    first, second = lorikeet(*words), lorikeet(*words)
    assert (first.json["reused"], second.json["reused"]) == (False, True)
    assert first.json["version"] == second.json["version"] == "acme/support@1"
    assert "reusing the finished run" in second.err


@pytest.mark.parametrize("change", ["job", "data"])
def test_another_job_or_other_data_is_another_run(lorikeet: Command, write_job: WriteJob, change: str) -> None:
    job = write_job()
    first = lorikeet("train", "run", job, "--json").json
    if change == "job":
        job = write_job(seed=7)
    else:
        with job.with_name("chat.jsonl").open("a") as file:
            file.write(
                '{"messages": [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "Goodbye!"}]}\n'
            )
    second = lorikeet("train", "run", job, "--reuse", "--json").json
    assert second["reused"] is False
    assert second["run"] != first["run"]


@pytest.mark.parametrize(
    ("keys", "words", "complaint"),
    [
        ({"rnak": 4}, (), "unknown key 'rnak' (did you mean 'rank'?)"),
        ({"data": "none.jsonl"}, (), "none.jsonl: the data file can't be read"),
        ({"base": "nobody"}, (), "The registry has no base 'nobody'. It has: tiny."),
        ({"rank": 128}, (), "rank 128 is above the registry's max_rank of 64"),
        ({"target_modules": ["c_attn"]}, (), "c_attn"),
        ({"max_length": 5}, (), "too_long: 4 rows longer than max_length"),
        ({}, ("--publish", "nobody/x"), "There is no tenant 'nobody'."),
        ({}, ("--publish", "acme/No Name"), "can't name an adapter"),
        ({}, ("--publish", "acme/base"), "reserved"),
        ({}, ("--publish", "support"), "write it as TENANT/NAME"),
        ({}, ("--promote",), "--promote needs --publish"),
        ({}, ("--set", "rank"), "write it as KEY=VALUE"),
        ({}, ("--set", "rank=many"), "rank: input should be a valid integer"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    lorikeet: Command, write_job: WriteJob, home: Path, keys: dict[str, Any], words: tuple[str, ...], complaint: str
) -> None:
    shown = lorikeet("train", "run", write_job(**keys), *words)
    assert shown.code == 2
    assert complaint in shown.err
    assert shown.err.splitlines()[-1].startswith("lorikeet: ")
    assert not (home / "runs").exists()


def test_a_broken_line_is_named_and_leaves_nothing(lorikeet: Command, write_job: WriteJob, home: Path) -> None:
    job = write_job()
    with job.with_name("chat.jsonl").open("a") as file:
        file.write("{oops\n")
    shown = lorikeet("train", "run", job)
    assert (shown.code, "line 5" in shown.err) == (2, True)
    assert not (home / "runs").exists()


def test_ctrl_c_says_where_the_last_checkpoint_is(
    lorikeet: Command, write_job: WriteJob, home: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(2, KeyboardInterrupt(), monkeypatch)
    shown = lorikeet("train", "run", write_job(checkpoint_steps=1), "--publish", "acme/support")
    assert shown.code == 130
    assert str(only_run(home) / "checkpoints" / "checkpoint-1") in shown.err
    assert not (only_run(home) / "adapter").exists()
    assert registry.adapters.list(Caller.operator(), "acme") == []


def test_a_failed_run_is_no_finished_run(
    lorikeet: Command, write_job: WriteJob, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_job()
    lorikeet("train", "run", job)
    with monkeypatch.context() as patched:
        interrupt_at(2, OSError("disk full"), patched)
        with pytest.raises(OSError, match="disk full"):
            lorikeet("train", "run", job)
    assert not (only_run(home) / "adapter").exists()
    assert lorikeet("train", "run", job, "--reuse", "--json").json["reused"] is False


def test_a_job_does_not_run_twice_at_once(lorikeet: Command, write_job: WriteJob, home: Path) -> None:
    job = write_job()
    lorikeet("train", "run", job)
    with (only_run(home) / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shown = lorikeet("train", "run", job)
    assert (shown.code, "run by another process" in shown.err) == (2, True)
    assert (only_run(home) / "run.json").exists()


def test_an_output_folder_with_other_files_is_left_alone(
    lorikeet: Command, write_job: WriteJob, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    shown = lorikeet("train", "run", write_job(output="mine"))
    assert (shown.code, "holds thesis.txt" in shown.err) == (2, True)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_nothing_is_reported_to_the_hub(
    lorikeet: Command, write_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)  # TRL is silent there anyway
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(_telemetry, "_TELEMETRY_THREAD", None)  # another test's process may have had one
    assert lorikeet("train", "run", write_job()).code == 0
    assert _telemetry._TELEMETRY_THREAD is None


def interrupt_at(number: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Metrics.write

    def interrupted(self: Metrics, step: Step) -> None:
        write(self, step)
        if step.step == number:
            raise error

    monkeypatch.setattr(Metrics, "write", interrupted)
