"""Uploads to the real engine: the good ones answer, the bad ones change nothing."""

import json
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from adapters import Base, Module
from tests.builders import Tensor, adapter_config, adapter_tensors, make_adapter_folder, safetensors_bytes
from tests.engine.asking import chat, leases, text_of
from tests.engine.conftest import ALL_LINEAR, RealServer

pytestmark = pytest.mark.engine

JUST_BELOW_THE_BOUND = 40.0
"""The spread of B at which scale · ‖A‖ · ‖B‖ comes near the gate's 10⁴ on the tiny base."""


def two_files(config: Any, weights: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [
        ("files", ("adapter_config.json", config if isinstance(config, bytes) else json.dumps(config).encode())),
        ("files", ("adapter_model.safetensors", weights)),
    ]


def bad_uploads(base: Base) -> dict[str, tuple[str, list[tuple[str, tuple[str, bytes]]]]]:
    """A case of each kind that stock vLLM loads, dies of, or answers wrongly with: its name → (code, files)."""
    tensors = adapter_tensors(base, 8)
    good, weights = adapter_config(8), safetensors_bytes(tensors)
    first = next(iter(tensors))
    q_down = tensors[first]
    smaller = adapter_tensors(
        replace(base, modules={k: Module(m.in_features // 2, m.out_features // 2) for k, m in base.modules.items()}), 8
    )
    nan = tensors | {first: Tensor.of(np.full(q_down.shape, np.nan))}
    renamed = {name.replace(".layers.", ".blocks."): tensor for name, tensor in tensors.items()}
    return {
        "not a number": ("not_finite", two_files(good, safetensors_bytes(nan))),
        "made for a smaller base": ("shape_mismatch", two_files(good, safetensors_bytes(smaller))),
        "names that match nothing": ("unknown_module", two_files(good, safetensors_bytes(renamed))),
        "an A without its B": (
            "missing_pair",
            two_files(good, safetensors_bytes({k: v for k, v in tensors.items() if k != first})),
        ),
        "cut off": ("safetensors_invalid", two_files(good, weights[:-50])),
        "DoRA": ("needs_conversion", two_files(good | {"use_dora": True}, weights)),
        "a rank beyond the registry's": (
            "rank_too_high",
            two_files(adapter_config(64), safetensors_bytes(adapter_tensors(base, 64))),
        ),
        "an alpha that is infinite": (
            "invalid_config",
            two_files(json.dumps(good | {"lora_alpha": float("inf")}).encode(), weights),
        ),
        "a pickle beside it": (
            "unsupported_format",
            [*two_files(good, weights), ("files", ("adapter_model.bin", b"\x80\x04."))],
        ),
        "no weights": ("missing_file", two_files(good, weights)[:1]),
    }


def test_the_engine_survives_every_bad_upload_and_answers_as_before(server: RealServer, tiny_base: Base) -> None:
    golden = [text_of(chat(server, server.acme)), text_of(chat(server, server.acme, adapter="support"))]
    resident = leases(server).keys()

    with server.client(server.acme) as client:
        for name, (code, files) in bad_uploads(tiny_base).items():
            answer = client.post("/admin/v1/tenants/acme/adapters/bad/versions?promote=true", files=files)
            assert 400 <= answer.status_code < 500, (name, answer.text)
            assert answer.json()["error"]["code"] == code, (name, answer.text)
            assert [text_of(chat(server, server.acme)), text_of(chat(server, server.acme, adapter="support"))] == golden
        assert client.get("/admin/v1/tenants/acme/adapters/bad/versions").status_code == 404

    assert leases(server).keys() == resident
    assert chat(server, server.acme, adapter="bad").status_code == 404


def test_the_strongest_adapter_that_the_gate_takes_spoils_no_other_answer(
    server: RealServer, tiny_base: Base, tmp_path: Path
) -> None:
    """A value that is no number would stay in freed blocks of the shared cache and reach the next tenant."""
    golden = [text_of(chat(server, server.acme)), text_of(chat(server, server.acme, adapter="support"))]
    folder = make_adapter_folder(
        tmp_path / "loud", tiny_base, modules=ALL_LINEAR, seed=3, strength=JUST_BELOW_THE_BOUND
    )
    server.publish("globex", "loud", folder)

    long = [{"role": "user", "content": "Where is my order? " * 20}]
    loud = [chat(server, server.globex, adapter="loud", messages=long, logprobs=True) for _ in range(4)]

    assert all(answer.status_code == 200 for answer in loud)
    assert [text_of(chat(server, server.acme)), text_of(chat(server, server.acme, adapter="support"))] == golden
    for _ in range(8):
        assert text_of(chat(server, server.acme, messages=long))
        assert text_of(chat(server, server.acme)) == golden[0]


def test_an_upload_is_probed_promoted_and_answers_at_once(server: RealServer, tiny_base: Base, tmp_path: Path) -> None:
    folder = make_adapter_folder(tmp_path / "fresh", tiny_base, modules=ALL_LINEAR, seed=7, strength=1.0)
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            tar.add(folder / name, name)

    with server.client(server.globex) as client:
        made = client.post(
            "/admin/v1/tenants/globex/adapters/fresh/versions?promote=true",
            content=archive.getvalue(),
            headers={"content-type": "application/gzip"},
        )
        metrics = httpx.get(f"{server.url}/metrics", headers={"authorization": f"Bearer {server.platform}"}).text

    assert made.status_code == 201, made.text
    assert made.json()["state"] == "ready"
    assert text_of(chat(server, server.globex, adapter="fresh")) != text_of(chat(server, server.globex))
    assert chat(server, server.acme, adapter="fresh").status_code == 404
    assert "vllm:lora_requests_info" not in metrics
    assert "vllm:generation_tokens_total" in metrics
