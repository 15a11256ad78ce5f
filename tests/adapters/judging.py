"""Files through the gate, without a registry around it."""

import io
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from adapters import Limits, Member, Refusal, RefusedError, archive_members
from adapters.gate import Admitted, admit
from tests.builders import Tensor, Tensors, adapter_config, adapter_tensors, make_base, safetensors_bytes

BASE = make_base()
GOOD = safetensors_bytes(adapter_tensors(BASE))
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
"""The name of a module's tensors, up to `.lora_A.weight`."""
CANONICAL_KEYS = {
    *("base_model_name_or_path", "bias", "inference_mode", "lora_alpha", "peft_type", "r", "target_modules"),
    *("task_type", "use_rslora"),
}


@contextmanager
def admitted_from(members: Iterable[Member], limits: Limits = Limits()) -> Iterator[Admitted]:  # noqa: B008  — frozen
    with tempfile.TemporaryDirectory() as staged:
        yield admit(members, Path(staged), BASE, limits)


def judged(config: bytes | None = None, weights: bytes = GOOD) -> AbstractContextManager[Admitted]:
    config = json.dumps(adapter_config()).encode() if config is None else config
    return admitted_from(
        [("adapter_config.json", io.BytesIO(config)), ("adapter_model.safetensors", io.BytesIO(weights))]
    )


def refusal_of(config: bytes | None = None, weights: bytes = GOOD) -> RefusedError:
    with pytest.raises(RefusedError) as caught, judged(config, weights):
        pass
    assert_told(caught.value)
    return caught.value


def assert_told(refused: RefusedError) -> None:
    """A refusal is one that a client may read: closed codes, printable sentences, and not too many of them."""
    codes = list(Refusal)
    assert refused.code == refused.problems[0].code
    assert [problem.code for problem in refused.problems] == sorted(
        (problem.code for problem in refused.problems), key=lambda code: codes.index(Refusal(code))
    )
    assert all(character.isprintable() and character < "\u2100" for character in refused.message)
    assert len(refused.message) < 8200
    assert "/tmp" not in refused.message  # noqa: S108  — where the gate works


def assert_judged(config: bytes | None = None, weights: bytes = GOOD) -> None:
    """Whatever comes in, what passes is right, and what does not is refused by the gate and by nothing else."""
    config = json.dumps(adapter_config()).encode() if config is None else config
    assert_members_judged([("adapter_config.json", config), ("adapter_model.safetensors", weights)])


def assert_members_judged(files: Sequence[tuple[str, bytes]]) -> None:
    """The same of any files."""
    _assert_judged([(name, io.BytesIO(content)) for name, content in files], Limits())


def assert_archive_judged(packed: bytes, *, max_bytes: int = 1 << 20) -> None:
    """The same of any archive, which may unpack to `max_bytes`."""

    def members() -> Iterator[Member]:
        yield from archive_members(io.BytesIO(packed), max_bytes=max_bytes)

    _assert_judged(members(), Limits(max_upload_bytes=max_bytes))


def _assert_judged(members: Iterable[Member], limits: Limits) -> None:
    try:
        with admitted_from(members, limits) as admitted:
            assert_sound(admitted)
    except RefusedError as error:
        assert_told(error)


def assert_sound(admitted: Admitted) -> None:
    """Read with no code of the gate's: a plain LoRA on the base's own layers, all of whose products are numbers."""
    config = json.loads((admitted.folder / "adapter_config.json").read_bytes())
    assert set(config) - {"rank_pattern", "alpha_pattern"} == CANONICAL_KEYS
    assert (config["peft_type"], config["bias"], config["r"]) == ("LORA", "none", admitted.manifest.rank)
    tensors = read_safetensors(admitted.folder / "adapter_model.safetensors")
    modules = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in tensors}
    assert tensors
    assert len(tensors) == 2 * len(modules)
    for module in modules:
        rank = config.get("rank_pattern", {}).get(f"^{module}", config["r"])
        alpha = config.get("alpha_pattern", {}).get(f"^{module}", config["lora_alpha"])
        size = BASE.modules[module]
        a, b = (tensors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        assert (a.shape, b.shape) == ((rank, size.in_features), (size.out_features, rank))
        scale = alpha / (rank**0.5 if config["use_rslora"] else rank)
        assert np.linalg.norm(values_of(a)) * np.linalg.norm(values_of(b)) * scale <= 1.001e4


def values_of(tensor: Tensor) -> NDArray[np.float64]:
    if tensor.dtype == "BF16":
        return (np.frombuffer(tensor.raw, "<u2").astype("<u4") << 16).view("<f4").astype("<f8")
    return np.frombuffer(tensor.raw, {"F32": "<f4", "F16": "<f2"}[tensor.dtype]).astype("<f8")


def read_safetensors(path: Path) -> Tensors:
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    del header["__metadata__"]
    return {
        name: Tensor(
            described["dtype"],
            tuple(described["shape"]),
            raw[start + described["data_offsets"][0] : start + described["data_offsets"][1]],
        )
        for name, described in header.items()
    }
