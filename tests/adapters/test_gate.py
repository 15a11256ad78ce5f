"""What the gate lets through, and what a refusal leaves behind."""

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adapters import (
    Base,
    Caller,
    Limits,
    NotFoundError,
    RefusedError,
    Registry,
    TooLargeError,
    folder_members,
    open_registry,
)
from adapters.gate import admit
from tests.adapters.judging import BASE, Q0, judged, read_safetensors, refusal_of
from tests.builders import (
    Tensor,
    adapter_config,
    adapter_tensors,
    make_adapter_folder,
    safetensors_bytes,
    write_adapter,
)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_canonical_weights_are_the_uploads_own(dtype: str) -> None:
    tensors = adapter_tensors(BASE, dtype=dtype)
    with judged(weights=safetensors_bytes(tensors)) as admitted:
        canonical = read_safetensors(admitted.folder / "adapter_model.safetensors")
        assert canonical == tensors
        assert admitted.manifest.dtype == dtype


def test_equal_adapters_have_one_digest_however_their_files_were_written() -> None:
    tensors = adapter_tensors(BASE)
    backwards = dict(reversed(tensors.items()))
    config = json.dumps(dict(reversed(adapter_config(modules=("v_proj", "q_proj")).items())), indent=7)
    weights = safetensors_bytes(backwards, header={"__metadata__": {"format": "pt", "by": "me"}})
    with judged(config.encode(), weights) as admitted, judged() as plain:
        assert admitted.manifest.digest == plain.manifest.digest


def test_the_canonical_config_says_only_what_an_engine_needs() -> None:
    with judged() as admitted:
        assert json.loads((admitted.folder / "adapter_config.json").read_bytes()) == {
            "base_model_name_or_path": BASE.fingerprint,
            "bias": "none",
            "inference_mode": True,
            "lora_alpha": 16,
            "peft_type": "LORA",
            "r": 8,
            "target_modules": ["q_proj", "v_proj"],
            "task_type": "CAUSAL_LM",
            "use_rslora": False,
        }


def test_an_adapter_on_some_layers_names_them_in_full() -> None:
    tensors = {name: tensor for name, tensor in adapter_tensors(BASE).items() if ".layers.1." in name}
    with judged(weights=safetensors_bytes(tensors)) as admitted:
        config = json.loads((admitted.folder / "adapter_config.json").read_bytes())
        assert config["target_modules"] == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
        assert admitted.manifest.target_modules == ("q_proj", "v_proj")


def test_the_canonical_tensors_lie_aligned() -> None:
    tensors = adapter_tensors(BASE)
    tensors[f"{Q0}.lora_A.weight"] = Tensor.of(np.ones((8, 32)), "BF16")
    with judged(weights=safetensors_bytes(tensors)) as admitted:
        raw = (admitted.folder / "adapter_model.safetensors").read_bytes()
        assert int.from_bytes(raw[:8], "little") % 8 == 0
        assert admitted.manifest.dtype == "BF16+F32"
        assert read_safetensors(admitted.folder / "adapter_model.safetensors") == tensors


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    at_the_limit = json.dumps({**adapter_config(alpha=181), "use_rslora": True}).encode()  # 181 / √8 = 63.99…
    with judged(at_the_limit) as admitted:
        assert admitted.manifest.use_rslora
    beyond = json.dumps({**adapter_config(alpha=182), "use_rslora": True}).encode()
    assert refusal_of(beyond).code == "scale_too_large"


@pytest.mark.parametrize("side", ["A", "B"])
def test_an_adapter_that_changes_nothing_passes_with_a_warning(side: str) -> None:
    tensors = {
        name: Tensor(tensor.dtype, tensor.shape, bytes(len(tensor.raw))) if f"lora_{side}" in name else tensor
        for name, tensor in adapter_tensors(BASE).items()
    }
    with judged(weights=safetensors_bytes(tensors)) as admitted:
        assert admitted.warnings == ("adapter_is_noop",)


def test_an_adapter_that_changes_something_passes_without_one(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "good", adapter_config(), adapter_tensors(BASE))
    (tmp_path / "staged").mkdir()
    assert admit(folder_members(folder), tmp_path / "staged", BASE, Limits()).warnings == ()


@pytest.mark.parametrize(
    ("code", "spoil"),
    [
        ("missing_file", lambda folder: (folder / "adapter_config.json").unlink()),
        ("missing_file", lambda folder: (folder / "adapter_model.safetensors").unlink()),
        ("unexpected_file", lambda folder: (folder / "tokenizer.json").write_text("{}")),
        ("unexpected_file", lambda folder: (folder / "chat_template.jinja").write_text("{}")),
        ("unexpected_file", lambda folder: (folder / "model.py").write_text("")),
        ("unexpected_file", lambda folder: (folder / "adapter_config.json.bak").write_text("")),
        ("unsupported_format", lambda folder: (folder / "adapter_model.bin").write_bytes(b"\x80")),
        ("unsupported_format", lambda folder: (folder / "training_args.PT").write_bytes(b"\x80")),
        ("illegal_member_type", lambda folder: (folder / "checkpoint-10").mkdir()),
        ("illegal_member_path", lambda folder: (folder / "a b").write_text("")),
        ("too_many_members", lambda folder: [(folder / f"{n}.txt").write_text("") for n in range(30)]),
        ("invalid_config", lambda folder: (folder / "adapter_config.json").write_text("{}")),
        ("file_too_large", lambda folder: (folder / "adapter_config.json").write_bytes(b" " * (1 << 20))),
        ("safetensors_invalid", lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"")),
    ],
    ids=map(str, range(14)),
)
def test_a_refused_upload_leaves_nothing_behind(
    registry: Registry,
    base: Base,
    admin: Caller,
    home: Path,
    tmp_path: Path,
    code: str,
    spoil: Callable[[Path], object],
) -> None:
    folder = make_adapter_folder(tmp_path / "bad", base)
    spoil(folder)
    with pytest.raises(RefusedError) as caught:
        registry.versions.publish(admin, "acme", "support", folder_members(folder), base=base.fingerprint)
    assert caught.value.code == code
    assert registry.adapters.list(admin, "acme") == []
    with pytest.raises(NotFoundError):
        registry.adapters.get(admin, "acme", "support")
    assert [path for path in (home / "store").rglob("*") if path.parent.name != "store"] == []


def test_weights_above_the_cap_are_refused_before_they_are_written(base: Base, admin: Caller, tmp_path: Path) -> None:
    folder = make_adapter_folder(tmp_path / "large", base)
    with open_registry(tmp_path / "home", max_upload_bytes=5000) as registry:
        registry.tenants.create(Caller.operator(), "acme")
        registry.bases.add(Caller.operator(), base)
        with pytest.raises(TooLargeError) as caught:
            registry.versions.publish(admin, "acme", "support", folder_members(folder), base=base.fingerprint)
    assert caught.value.code == "file_too_large"


def test_the_same_file_twice_is_refused() -> None:
    members = [("adapter_config.json", io.BytesIO(b"{}"))] * 2
    with tempfile.TemporaryDirectory() as staged, pytest.raises(RefusedError) as caught:
        admit(members, Path(staged), BASE, Limits())
    assert caught.value.code == "duplicate_file"
