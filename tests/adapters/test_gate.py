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
    Refusal,
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
    with open_registry(tmp_path / "home", limits=Limits(max_upload_bytes=5000)) as registry:
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


# --- all that is wrong, in one refusal --------------------------------------------------------------------------------


def spoilt_all_over() -> tuple[bytes, bytes]:
    """An adapter with a fault at each step that can be told apart from the others."""
    config = {
        **adapter_config(alpha=-1),
        "use_dora": True,
        "bias": "all",
        "base_model_name_or_path": f"sha256:{'0' * 64}",
    }
    tensors = adapter_tensors(BASE)
    names = list(tensors)
    tensors[names[0]] = Tensor.of(np.full((8, 32), np.nan))
    tensors[names[2]] = Tensor("F64", (8, 32), bytes(8 * 32 * 8))
    tensors[names[4]] = Tensor.of(np.ones((32, 8)))
    del tensors[names[7]]
    tensors["base_model.model.lm_head.weight"] = Tensor.of(np.ones((2, 2)))
    tensors |= adapter_tensors(BASE, modules=["o_proj"])
    for side in "AB":
        tensors[f"base_model.model.elsewhere.lora_{side}.weight"] = Tensor.of(np.ones((8, 8)))
    return json.dumps(config).encode(), safetensors_bytes(tensors)


def test_one_refusal_tells_of_all_that_is_wrong_in_the_order_of_the_codes() -> None:
    refused = refusal_of(*spoilt_all_over())
    codes = list(dict.fromkeys(problem.code for problem in refused.problems))
    assert codes == [
        "unsupported_config",
        "needs_conversion",
        "base_mismatch",
        "invalid_alpha",
        "unsupported_dtype",
        "invalid_tensor_name",
        "missing_pair",
        "unknown_module",
        "shape_mismatch",
        "not_finite",
    ]
    assert refused.code == codes[0]
    assert refused.message == " ".join(problem.message for problem in refused.problems)


def test_strange_files_and_what_is_wrong_with_the_two_are_told_together() -> None:
    members = [
        ("adapter_config.json", io.BytesIO(json.dumps({**adapter_config(), "bias": "all"}).encode())),
        ("adapter_model.bin", io.BytesIO(b"\x80")),
        ("tokenizer.json", io.BytesIO(b"{}")),
    ]
    with tempfile.TemporaryDirectory() as staged, pytest.raises(RefusedError) as caught:
        admit(members, Path(staged), BASE, Limits())
    codes = [problem.code for problem in caught.value.problems]
    assert codes == ["unexpected_file", "unsupported_format", "unsupported_config"]


def test_a_broken_config_does_not_hide_what_is_wrong_with_the_weights() -> None:
    tensors = adapter_tensors(BASE)
    tensors[f"{Q0}.lora_B.weight"] = Tensor.of(np.full((32, 8), np.inf))
    refused = refusal_of(b"{", safetensors_bytes(tensors))
    assert [problem.code for problem in refused.problems] == ["invalid_config", "not_finite"]


def test_a_broken_config_is_all_there_is_to_say_of_sound_weights() -> None:
    assert [problem.code for problem in refusal_of(b"{}").problems] == ["invalid_config"] * 4


def test_a_refusal_stays_readable_however_much_is_wrong() -> None:
    names = {f"{'x' * 70}\U0001f600{number}": None for number in range(60)}
    config = json.dumps({**adapter_config(), **dict.fromkeys(names, 1)}).encode()
    tensors = {f"{name}\U0001f600" * 2: Tensor("F64", (1,), bytes(8)) for name in names}
    refused = refusal_of(config, safetensors_bytes(tensors))
    assert len(refused.message) < 8200
    assert "(and 50 more)" in refused.message
    assert all(len([one for one in refused.problems if one.code == code]) <= 10 for code in Refusal)
