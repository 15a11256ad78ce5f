"""A merged model from the registry under the real engine: published as any version, served by name to its tenant."""

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters import Base, Caller, Kind, Scope, fingerprint_base, folder_members, open_registry
from tests.builders import make_adapter_folder
from tests.engine.asking import GREEDY, QUESTION, text_of
from tests.engine.conftest import ALL_LINEAR
from tests.engine.test_main_job import LORIKEET, wait_until_listening
from tests.live_server import free_port

pytestmark = pytest.mark.engine

OPERATOR = Caller.operator()
MODEL = "acme/model@1"
RANK, ALPHA = 8, 16.0


@dataclass(frozen=True)
class Served:
    """The running server, the keys of two tenants, and the merged checkpoint as it was before it was published."""

    url: str
    keys: dict[str, str]
    merged: Path

    def chat(self, tenant: str, **fields: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.keys[tenant]}"}
        return httpx.post(f"{self.url}/v1/chat/completions", json=GREEDY | fields, headers=headers, timeout=120)


@pytest.fixture
def served(tiny_base: Base, tmp_path: Path) -> Iterator[Served]:
    """`lorikeet serve --base acme/model@1`, with an adapter that was made for it."""
    merged = merge(
        tiny_base, make_adapter_folder(tmp_path / "lora", tiny_base, RANK, ALPHA, modules=ALL_LINEAR), tmp_path
    )
    adapter = make_adapter_folder(tmp_path / "support", tiny_base, 4, modules=ALL_LINEAR, seed=1, strength=1.0)
    with open_registry(tmp_path / "home") as registry:
        known = fingerprint_base(Path(tiny_base.path))
        registry.bases.add(OPERATOR, replace(tiny_base, tensors=known.tensors, config=known.config))
        for tenant in ("acme", "globex"):
            registry.tenants.create(OPERATOR, tenant)
        keys = {
            tenant: registry.keys.issue(OPERATOR, tenant, name="test", scopes=frozenset({Scope.INFER})).secret
            for tenant in ("acme", "globex")
        }
        registry.versions.publish(
            OPERATOR, "acme", "model", folder_members(merged), base=tiny_base.name, kind=Kind.MERGED
        )
        registry.versions.publish(OPERATOR, "acme", "support", folder_members(adapter), base=MODEL)
        registry.aliases.promote(OPERATOR, "acme", "support", 1)

    port = free_port()
    options = {"--base": MODEL, "--port": port, "--max-loras": 2, "--max-model-len": 512, "--dtype": "float32"}
    command = [LORIKEET, "serve", *(str(word) for option in options.items() for word in option)]
    environment = os.environ | {  # noqa: TID251  — a user's shell
        "LORIKEET_HOME": str(tmp_path / "home"),
        "LORIKEET_KV_CACHE_MEMORY_BYTES": str(1 << 27),
    }
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        try:
            wait_until_listening(server, tmp_path / "log")
            yield Served(f"http://127.0.0.1:{port}", keys, merged)
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0, (tmp_path / "log").read_text()


def merge(base: Base, adapter: Path, place: Path) -> Path:
    """The base's checkpoint with the adapter in its weights: W + alpha / r · B · A."""
    folder = Path(copytree(base.path, place / "merged"))
    weights = load_file(folder / "model.safetensors")
    lora = load_file(adapter / "adapter_model.safetensors")
    for module in base.modules:
        a, b = (lora[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        weights[f"{module}.weight"] += ALPHA / RANK * b @ a
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def answer_of(checkpoint: Path) -> str:
    """What transformers makes of the same question, greedily."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    asked = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        ids = model.generate(**asked, max_new_tokens=GREEDY["max_tokens"], do_sample=False)
    text: str = tokenizer.decode(ids[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def test_a_merged_model_is_served_to_its_tenant_with_the_adapters_that_were_made_for_it(
    served: Served, tiny_base: Base
) -> None:
    # The merged weights answer, by every name that means them
    expected = answer_of(served.merged)
    assert expected != answer_of(Path(tiny_base.path))
    for fields in ({}, {"model": MODEL}, {"adapter": "model@1"}):
        answer = served.chat("acme", **fields)
        assert (text_of(answer), answer.headers["x-lorikeet-adapter"]) == (expected, MODEL)

    # An adapter of it is probed, and changes the answer
    adapted = served.chat("acme", adapter="support")
    assert adapted.headers["x-lorikeet-adapter"] == "acme/support@1"
    assert text_of(adapted) != expected

    # For another tenant there is no such model
    for fields in ({}, {"model": MODEL}, {"adapter": MODEL}):
        refused = served.chat("globex", **fields)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "adapter_not_found")
