"""`lorikeet train quantize`: what fits, what is asked of llmcompressor, and what becomes of its word. It is not needed.

The workshop is a stand-in that packs by hand what llmcompressor would; the last test, a slow one, has the real one.
"""

import fcntl
import json
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from safetensors.numpy import load_file

from adapters import Caller, Module, Registry, folder_members
from tests.builders import make_adapter_folder
from tests.quantising import W4A16, W8A8, quantise_folder, quantization_config
from tests.tiny_model import make_tiny_checkpoint
from tests.trainer.conftest import Command
from trainer.artifacts import quantize_environment
from trainer.artifacts.quantize_environment import LlmCompressor, Request, make
from trainer.artifacts.quantize_schemes import Scheme, arguments_of, choose_group_size
from trainer.base import prepare_base
from trainer.checkpoint import module_table
from trainer.errors import ArtifactError
from trainer.progress import Narrator
from trainer.verbs import quantize as verb

OPERATOR = Caller.operator()


class HandPacking:
    """A workshop without llmcompressor: as it, it writes its own words into the config, and notes beside it."""

    requests: list[Request]

    def __init__(self, _home: Path) -> None:
        pass

    def prepare(self, narrator: Narrator) -> None:
        narrator.say("prepared")

    def run(self, request: Request, narrator: Narrator) -> None:
        narrator.say("packed")
        self.requests.append(request)
        source, out = Path(request.model), Path(request.out)
        scheme = W8A8 if request.weights["num_bits"] == 8 else W4A16
        group_size = request.weights.get("group_size", 0)
        weights = load_file(source / "model.safetensors")
        packed = quantise_folder(source, out / "packed", weights, module_table(source), scheme, group_size)
        for path in packed.iterdir():
            path.rename(out / path.name)
        packed.rmdir()
        (out / "recipe.yaml").write_text("default_stage: {}")


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What the stand-in was asked for."""
    asked: list[Request] = []
    monkeypatch.setattr(HandPacking, "requests", asked, raising=False)
    monkeypatch.setattr(verb, "LlmCompressor", HandPacking)
    return asked


@pytest.mark.usefixtures("requests")
def test_a_base_in_8_bits_is_published_beside_what_it_was_made_from(
    lorikeet: Command, registry: Registry, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    done = lorikeet("train", "quantize", "tiny", "--scheme", "w8a8", "--out", out, "--publish", "acme/small", "--json")
    assert done.code == 0, done.err

    # What was measured stands in the result, in the folder and in the registry
    report = done.json
    assert (report["scheme"], report["group_size"], report["layers"]) == ("w8a8", None, 14)
    assert report["size_bytes"] < 0.6 * report["size_bytes_before"]
    assert report["likeness"]["same_choice"] > 0.9
    assert report["likeness"]["divergence"] < 0.05
    assert not report["far"]
    version = registry.versions.get(OPERATOR, "acme", "small", 1)
    assert version.origin["method"] == "quantize"
    assert version.origin["quantize"]["likeness"] == report["likeness"]
    assert "scheme: w8a8" in (out / "README.md").read_text()

    # The folder holds a checkpoint and its card, with nothing of llmcompressor's own notes
    how = json.loads((out / "config.json").read_bytes())["quantization_config"]
    assert "version" not in how
    assert not (out / "recipe.yaml").exists()
    assert (out / "tokenizer.json").is_file()

    # It takes the adapters of the original
    original = registry.bases.find(OPERATOR, "tiny")
    assert registry.bases.find(OPERATOR, version.label).quantised_from == original.fingerprint


def test_a_version_in_fewer_bits_has_it_as_its_parent(
    lorikeet: Command, registry: Registry, requests: list[Request], tmp_path: Path
) -> None:
    base = registry.bases.find(OPERATOR, "tiny")
    adapter = make_adapter_folder(tmp_path / "lora", base, modules=("q_proj", "down_proj"), strength=0.1)
    registry.versions.publish(OPERATOR, "acme", "support", folder_members(adapter), base=base.fingerprint)
    merged = ("merge", "acme/support@1", "--out", tmp_path / "merged", "--publish", "acme/merged", "--no-measure")
    assert lorikeet("train", *merged).code == 0
    small = ("--scheme", "w4a16", "--out", tmp_path / "small", "--publish", "acme/small", "--no-measure")
    done = lorikeet("train", "quantize", "acme/merged@1", *small)
    assert done.code == 0, done.err
    assert "groups of 64" in done.out

    version = registry.versions.get(OPERATOR, "acme", "small", 1)
    assert version.parents == ("acme/merged@1",)
    merged_base = registry.bases.find(OPERATOR, "acme/merged@1")
    assert version.manifest.base_fingerprint == merged_base.fingerprint
    assert (requests[0].algorithm, requests[0].samples, requests[0].ignore) == ("rtn", (), ("lm_head",))


def test_gptq_looks_at_the_data_that_it_is_given_as_the_template_has_them(
    lorikeet: Command, requests: list[Request], tmp_path: Path
) -> None:
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]} for text in "abc"]
    data = tmp_path / "chat.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ("--scheme", "gptq", "--calibration", data, "--samples", 2, "--out", tmp_path / "small", "--json")
    done = lorikeet("train", "quantize", "tiny", *asked)
    assert done.code == 0, done.err
    assert (done.json["calibration"], done.json["calibration_samples"]) == ("chat.jsonl", 2)
    assert done.json["calibration_fingerprint"].startswith("sha256:")
    assert len(requests[0].samples) == 2
    assert requests[0].samples[0][:-3] == requests[0].samples[1][:-3]


def test_without_data_the_texts_that_ship_are_looked_at(
    lorikeet: Command, requests: list[Request], tmp_path: Path
) -> None:
    done = lorikeet("train", "quantize", "tiny", "--scheme", "awq", "--out", tmp_path / "small", "--no-measure")
    # The stand-in knows no zero points, so that what it wrote is not what was asked for.
    assert done.code == 2
    assert "did not write what it was asked for" in done.err
    assert not (tmp_path / "small").exists()
    assert len(requests[0].samples) == 24


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tiny", "--scheme", "w4a16", "--group-size", 128), "use --group-size 64"),
        (("tiny", "--scheme", "w4a16", "--group-size", 48), "use one of 128, 64, 32, or auto"),
        (("tiny", "--scheme", "w4a16", "--group-size", "many"), "write a number, or auto"),
        (("tiny", "--scheme", "w8a8", "--group-size", 64), "leave it out"),
        (("tiny", "--scheme", "w8a8", "--calibration", "x.jsonl"), "looks at no data"),
        (("nobody", "--scheme", "w8a8"), "has no base"),
        (("acme/nothing@1", "--scheme", "w8a8"), "nothing"),
    ],
    ids=["undivided", "unknown size", "no size", "no groups", "no data", "no base", "no version"],
)
def test_what_can_t_be_is_said_before_anything_is_installed(
    words: tuple[object, ...], said: str, lorikeet: Command, requests: list[Request], tmp_path: Path
) -> None:
    done = lorikeet("train", "quantize", *words, "--out", tmp_path / "small")
    assert done.code != 0
    assert said in done.err
    assert "prepared" not in done.err
    assert not requests


@pytest.mark.usefixtures("requests")
def test_what_is_quantised_is_not_quantised_again(lorikeet: Command, tmp_path: Path) -> None:
    made = ("--scheme", "w8a8", "--out", tmp_path / "small", "--no-measure")
    assert lorikeet("train", "quantize", "tiny", *made).code == 0
    again = lorikeet("train", "quantize", tmp_path / "small", "--scheme", "w4a16", "--out", tmp_path / "smaller")
    assert again.code == 2
    assert "is quantised already" in again.err


@pytest.mark.usefixtures("requests")
def test_a_model_that_the_registry_does_not_know_is_not_published(
    lorikeet: Command, tiny: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in tiny.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "chat_template.jinja").write_text("{{ messages }}")
    asked = ("--scheme", "w8a8", "--out", tmp_path / "small", "--publish", "acme/small")
    done = lorikeet("train", "quantize", other, *asked)
    assert done.code == 2
    assert "publish it first, and quantise the version" in done.err


def test_a_base_is_named_as_the_hub_names_it(
    lorikeet: Command, registry: Registry, requests: list[Request], home: Path, tmp_path: Path
) -> None:
    other = make_tiny_checkpoint(tmp_path / "other", seed=8)
    prepare_base(str(other), "org/model", registry=registry, home=home, narrator=Narrator())
    made = ("--scheme", "w8a8", "--out", tmp_path / "small", "--no-measure", "--json")
    done = lorikeet("train", "quantize", "org/model", *made)
    assert (done.code, done.json and done.json["source"]) == (0, "org/model"), done.err
    assert requests[0].model == str(other)


# --- schemes ----------------------------------------------------------------------------------------------------------


def test_gptq_is_stored_as_w4a16_is_so_that_what_serves_one_serves_the_other() -> None:
    assert arguments_of(Scheme.GPTQ, 32) == arguments_of(Scheme.W4A16, 32)


def test_auto_takes_the_largest_group_that_divides_every_layer() -> None:
    smollm = {"q_proj": Module(576, 576), "down_proj": Module(1536, 576)}
    assert choose_group_size(Scheme.GPTQ, None, smollm) == 64
    assert choose_group_size(Scheme.GPTQ, None, {"q_proj": Module(4096, 4096)}) == 128
    assert choose_group_size(Scheme.W8A8, None, smollm) is None
    with pytest.raises(ArtifactError, match="use --scheme w8a8"):
        choose_group_size(Scheme.W4A16, None, {"q_proj": Module(100, 64)})


def test_a_layer_whose_zero_points_can_not_be_packed_is_named_and_without_them_it_fits() -> None:
    odd = {"k_proj": Module(128, 60)}
    with pytest.raises(ArtifactError, match="k_proj has 60 outputs, no multiple of 8, as awq needs"):
        choose_group_size(Scheme.AWQ, None, odd)
    assert choose_group_size(Scheme.W4A16, None, odd) == 128


@pytest.mark.parametrize("scheme", Scheme)
def test_every_scheme_is_one_that_the_registry_admits(scheme: Scheme) -> None:
    arguments = arguments_of(scheme, 64 if scheme.is_grouped else None)
    like = quantization_config(
        {Scheme.W8A8: "w8a8", Scheme.FP8: "fp8", Scheme.AWQ: "w4a16-zero-point"}.get(scheme, W4A16), 64
    )
    (group,) = like["config_groups"].values()
    assert dict(arguments.weights).items() <= group["weights"].items()
    assert (arguments.activations is None) is (group["input_activations"] is None)


# --- the environment --------------------------------------------------------------------------------------------------


def break_off(folder: Path) -> None:
    (folder / "half").write_text("")
    raise ArtifactError("broken off")


def fill(folder: Path) -> None:
    (folder / "whole").write_text("")


def test_an_environment_that_was_not_finished_is_made_anew(tmp_path: Path) -> None:
    place = tmp_path / "environments" / "one"
    with pytest.raises(ArtifactError, match="broken off"):
        make(place, break_off)
    assert not list(place.parent.glob("[!.]*"))
    make(place, fill)
    assert [path.name for path in place.iterdir()] == ["whole"]
    make(place, break_off)  # somebody else was faster
    assert {path.name for path in place.parent.iterdir()} == {"one", ".lock"}


def test_what_a_maker_that_died_left_is_swept(tmp_path: Path) -> None:
    left = tmp_path / "environments" / ".staging-killed"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    make(left.parent / "one", fill)
    assert not left.exists()


SLEEPER = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', {inner!r}]).wait()"
HOLDER = """
import fcntl, threading
held = open({path!r}, 'w')
fcntl.flock(held, fcntl.LOCK_EX)
print('held', file=held, flush=True)
threading.Event().wait()
"""
DRIVER = """
import sys
from pathlib import Path
from trainer.artifacts.quantize_environment import _watch
from trainer.progress import Narrator
_watch([sys.executable, "-c", {script!r}], Path({log!r}), Narrator())
"""


def test_what_runs_there_does_not_outlive_a_command_that_is_asked_to_end(tmp_path: Path) -> None:
    held = tmp_path / "held"
    script = SLEEPER.format(inner=HOLDER.format(path=str(held)))
    driver = DRIVER.format(script=script, log=str(tmp_path / "log"))
    with subprocess.Popen([sys.executable, "-c", driver], cwd=Path(__file__).parents[2]) as command:
        while not (held.is_file() and held.read_text()):
            assert command.poll() is None
            Event().wait(0.05)
        command.terminate()
        assert command.wait() == 128 + signal.SIGTERM
    with held.open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # which a child that lived on would hold


def test_where_pip_can_t_install_the_error_has_the_line_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text("./nothing_here-1.0-py3-none-any.whl\n")
    monkeypatch.setattr(quantize_environment, "REQUIREMENTS", pins)
    workshop = LlmCompressor(tmp_path / "home")
    with pytest.raises(ArtifactError, match=r"pip could not install llmcompressor: .*python -I -m pip install"):
        workshop.prepare(Narrator())
    assert not list((tmp_path / "home" / "environments").glob("[!.]*"))
    assert not list((tmp_path / "home" / "environments").glob(".staging-*"))


def test_what_the_script_said_last_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text("import json, sys\nasked = json.load(open(sys.argv[2]))\nsys.exit('no ' + asked['algorithm'])\n")
    monkeypatch.setattr(quantize_environment, "SCRIPT", script)
    request = Request("model", "out", "rtn", {"num_bits": 8}, None, ("lm_head",), ())
    with pytest.raises(ArtifactError, match="could not quantise the model: no rtn"):
        LlmCompressor(tmp_path / "home").run(request, Narrator())


@pytest.mark.slow
@pytest.mark.parametrize("scheme", Scheme)
def test_llmcompressor_makes_what_the_registry_takes(
    scheme: Scheme, lorikeet: Command, registry: Registry, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    home: Any = tmp_path_factory.getbasetemp() / "workshop"  # one environment for all schemes
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(verb, "LlmCompressor", lambda _home: LlmCompressor(home))
        asked = ("--scheme", scheme.value, "--out", tmp_path / "small", "--publish", "acme/small", "--json")
        done = lorikeet("train", "quantize", "tiny", *asked)
    assert done.code == 0, done.err
    assert done.json["likeness"]["divergence"] < 0.5
    assert registry.bases.find(OPERATOR, "acme/small@1").is_quantised
