"""A model in fewer bits under the real engine: served by name, with an adapter of what it was quantised from on top."""

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters import Base, Caller, Kind, Scope, fingerprint_base, folder_members, open_registry
from tests.builders import make_adapter_folder
from tests.engine.asking import QUESTION, text_of
from tests.engine.conftest import ALL_LINEAR
from tests.engine.test_main_job import LORIKEET, wait_until_listening
from tests.live_server import free_port
from tests.quantising import W4A16, W8A8, quantise_folder, rounded

pytestmark = pytest.mark.engine

OPERATOR = Caller.operator()
MODEL = "acme/small@1"
RANK, ALPHA = 8, 16.0
ASKED: dict[str, Any] = {"messages": QUESTION, "temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}
TOLERANCE = 0.12
"""In nats: bfloat16 against float32, and activations in 8 bits, which vLLM has on the CPU under 4-bit weights, too."""


@dataclass(frozen=True)
class Served:
    """The running server, a tenant's key, and what its weights are when they are read back."""

    scheme: str
    url: str
    key: str
    weights: dict[str, NDArray[Any]]
    adapter: Path

    def chat(self, **fields: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.post(f"{self.url}/v1/chat/completions", json=ASKED | fields, headers=headers, timeout=120)


@pytest.fixture(params=[W8A8, W4A16])
def served(request: pytest.FixtureRequest, tiny_base: Base, tmp_path: Path) -> Iterator[Served]:
    """`lorikeet serve --base acme/small@1`, and an adapter that was published for the tiny base, not for this one."""
    scheme: str = request.param
    weights = load_file(Path(tiny_base.path) / "model.safetensors")
    small = quantise_folder(Path(tiny_base.path), tmp_path / "small", weights, tiny_base.modules, scheme)
    adapter = make_adapter_folder(tmp_path / "lora", tiny_base, RANK, ALPHA, modules=ALL_LINEAR, seed=1, strength=0.3)
    with open_registry(tmp_path / "home") as registry:
        known = fingerprint_base(Path(tiny_base.path))
        registry.bases.add(OPERATOR, replace(tiny_base, tensors=known.tensors, config=known.config))
        registry.tenants.create(OPERATOR, "acme")
        key = registry.keys.issue(OPERATOR, "acme", name="test", scopes=frozenset({Scope.INFER})).secret
        publish = registry.versions.publish
        publish(OPERATOR, "acme", "small", folder_members(small), base=tiny_base.name, kind=Kind.MERGED)
        publish(OPERATOR, "acme", "support", folder_members(adapter), base=tiny_base.name)
        registry.aliases.promote(OPERATOR, "acme", "support", 1)

    port = free_port()
    options = {"--base": MODEL, "--port": port, "--max-loras": 2, "--max-model-len": 512, "--dtype": "bfloat16"}
    command = [LORIKEET, "serve", *(str(word) for option in options.items() for word in option)]
    environment = os.environ | {  # noqa: TID251  — a user's shell
        "LORIKEET_HOME": str(tmp_path / "home"),
        "LORIKEET_KV_CACHE_MEMORY_BYTES": str(1 << 27),
    }
    back = {name: rounded(weights[f"{name}.weight"], scheme) for name in tiny_base.modules}
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        try:
            wait_until_listening(server, tmp_path / "log")
            yield Served(scheme, f"http://127.0.0.1:{port}", key, back, adapter)
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0, (tmp_path / "log").read_text()


def reference(base: Base, served: Served, *, with_adapter: bool) -> dict[str, float]:
    """What transformers finds of the first token, with the weights as they come back: token → log-probability."""
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    model = AutoModelForCausalLM.from_pretrained(base.path).eval()
    lora = load_file(served.adapter / "adapter_model.safetensors")
    for module, values in served.weights.items():
        a, b = (lora[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        total = values + (ALPHA / RANK * b @ a if with_adapter else 0)
        model.get_submodule(module).weight.data = torch.from_numpy(np.asarray(total, dtype=np.float32))
    asked = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        found = model(**asked).logits[0, -1].log_softmax(-1)
    return {tokenizer.decode([token]): float(found[token]) for token in found.argsort(descending=True)[:100].tolist()}


def told(answer: httpx.Response) -> dict[str, float]:
    text_of(answer)
    (first,) = answer.json()["choices"][0]["logprobs"]["content"]
    # A byte that is no letter by itself has no text that would tell it from others.
    whole = {each["token"]: each["logprob"] for each in first["top_logprobs"] if each["token"].isalnum()}
    assert whole
    return whole


def test_a_quantised_model_answers_with_its_own_weights_and_with_its_originals_adapter(
    served: Served, tiny_base: Base
) -> None:
    plain, adapted = (reference(tiny_base, served, with_adapter=flag) for flag in (False, True))
    near = TOLERANCE

    # The weights as they come back answer
    own = served.chat()
    assert own.headers["x-lorikeet-adapter"] == MODEL
    assert "x-lorikeet-warning" not in own.headers
    assert told(own) == pytest.approx({token: plain[token] for token in told(own)}, abs=near)

    # … and with the adapter on them, of which the answer says that it was trained on another base
    with_it = served.chat(adapter="support")
    assert with_it.headers["x-lorikeet-adapter"] == "acme/support@1"
    assert with_it.headers["x-lorikeet-warning"] == "base_quantised"
    assert told(with_it) == pytest.approx({token: adapted[token] for token in told(with_it)}, abs=near)
    assert told(with_it) != pytest.approx({token: plain.get(token, -99.0) for token in told(with_it)}, abs=5 * near)
