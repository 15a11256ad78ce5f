"""vLLM with an adapter on every linear layer, against transformers with PEFT: one architecture after the other.

Each engine has a process of its own: started by a person, `pytest -m slow tests/engine/test_architectures.py -s`.
"""

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapters import Limits, folder_members
from adapters.gate import admit
from tests.architectures import ARCHITECTURES, described, last_names, load_model, make_checkpoint, make_peft_adapter

pytestmark = pytest.mark.slow

PROMPTS = ("Where is my order?", "The capital of France is Paris, and the capital of Italy")
TOKENS = 8
TOLERANCE = 2e-3
"""On natural-log probabilities, in float32: two implementations of the same sums."""

ASK_VLLM = """
import asyncio, json, sys
from pathlib import Path
from server.engine.environment import prepare_environment

async def story(engine, folder, prompts, tokens):
    await engine.start()
    try:
        adapter = await engine.load("adapter", folder)
        for who in (None, adapter):
            for prompt in prompts:
                sample = await engine.sample(prompt, who, max_tokens=tokens)
                print("ANSWER", json.dumps([sample.token_ids, sample.logprobs]))
    finally:
        await engine.stop()

if __name__ == "__main__":
    prepare_environment()
    from server.engine.vllm import VllmEngine

    checkpoint, folder, names, prompts, tokens = json.loads(sys.argv[1])
    engine = VllmEngine(
        model=Path(checkpoint), base_name="tiny", slots=2, host_slots=4, max_rank=16, target_modules=names,
        max_model_len=256, kv_cache_memory_bytes=1 << 26, dtype="float32",
    )
    asyncio.run(story(engine, Path(folder), prompts, tokens))
"""


@dataclass(frozen=True)
class Answer:
    """A greedy continuation."""

    token_ids: list[int]
    logprobs: list[float]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_vllm_answers_as_transformers_and_peft_do(architecture: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / architecture, architecture)
    base = described(checkpoint)
    uploaded = make_peft_adapter(
        checkpoint,
        tmp_path / "uploaded",
        target_modules=last_names(base),
        rank_pattern={"fc2" if architecture == "phi" else "down_proj": 3},
        alpha_pattern={"dense" if architecture == "phi" else "o_proj": 5},
    )
    (tmp_path / "staged").mkdir()
    admitted = admit(folder_members(uploaded), tmp_path / "staged", base, Limits())

    found = asked_vllm(checkpoint, admitted.folder, last_names(base), tmp_path)
    of_the_base, of_the_adapter = (asked_transformers(checkpoint, adapter) for adapter in (None, uploaded))

    assert of_the_base != of_the_adapter
    differences = []
    for one, other in zip(found, [*of_the_base, *of_the_adapter], strict=True):
        assert one.token_ids == other.token_ids
        differences += [abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True)]
    assert max(differences) < TOLERANCE
    print(f"{architecture}: {len(base.modules)} modules, largest difference {max(differences):.1e} nats")  # noqa: T201


def asked_vllm(checkpoint: Path, adapter: Path, names: list[str], folder: Path) -> list[Answer]:
    """The base's answers, and then the adapter's."""
    script = folder / "ask.py"
    script.write_text(ASK_VLLM)
    words = json.dumps([str(checkpoint), str(adapter), names, PROMPTS, TOKENS])
    done = subprocess.run(
        [sys.executable, str(script), words], capture_output=True, text=True, timeout=400, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, done.stdout[-3000:] + done.stderr[-6000:]
    return [Answer(*json.loads(line.removeprefix("ANSWER "))) for line in lines]


def asked_transformers(checkpoint: Path, adapter: Path | None) -> list[Answer]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = load_model(checkpoint)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    return [_continued(model.eval(), tokenizer(prompt, return_tensors="pt").input_ids) for prompt in PROMPTS]


def _continued(model: Any, token_ids: Any) -> Answer:
    import torch

    chosen, logprobs = [], []
    for _ in range(TOKENS):
        with torch.no_grad():
            last = torch.log_softmax(model(token_ids).logits[0, -1].double(), dim=-1)
        chosen.append(int(last.argmax()))
        logprobs.append(float(last.max()))
        token_ids = torch.cat([token_ids, torch.tensor([[chosen[-1]]])], dim=1)
    assert all(math.isfinite(logprob) for logprob in logprobs)
    return Answer(chosen, logprobs)
