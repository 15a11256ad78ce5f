"""A load that fails half-way: the gate is got round, and still nobody hears another tenant's adapter.

Stock vLLM 0.32 marks a slot as the new adapter's before it copies the weights. A tensor that is too large ends the copy
with the first layers of the new adapter in the slot, and the previous tenant's in the others; the second load says yes.
"""

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters import Base, Kind, Manifest, Member, folder_members
from adapters.digests import ADAPTER_FILES, digest_folder
from adapters.gate import Admitted
from server.engine.protocol import AdapterRejectedError, Engine, Health, LoadedAdapter, Sample
from tests.builders import Tensor, Tensors, adapter_config, adapter_tensors, make_adapter_folder, write_adapter
from tests.engine.asking import chat, leases, text_of
from tests.engine.conftest import ALL_LINEAR, HOST_SLOTS, OPERATOR, SLOTS, RealServer

pytestmark = pytest.mark.engine

PROMPT = "Where is my order? It was sent on Monday"
LAST = "base_model.model.model.layers.1.mlp.down_proj"
"""The pair that is copied into the slot when nearly all others are."""
Spoil = Callable[[Tensors], object]


def too_large(tensors: Tensors) -> None:
    tensors[f"{LAST}.lora_B.weight"] = Tensor.of(np.ones((640, 8)))


def too_wide(tensors: Tensors) -> None:
    tensors[f"{LAST}.lora_A.weight"] = Tensor.of(np.ones((8, 1280)))


def above_the_rank(tensors: Tensors) -> None:
    tensors[f"{LAST}.lora_A.weight"] = Tensor.of(np.ones((64, 128)))
    tensors[f"{LAST}.lora_B.weight"] = Tensor.of(np.ones((64, 64)))


def without_its_a(tensors: Tensors) -> None:
    del tensors[f"{LAST}.lora_A.weight"]


def without_its_b(tensors: Tensors) -> None:
    del tensors[f"{LAST}.lora_B.weight"]


def of_one_dimension(tensors: Tensors) -> None:
    tensors[f"{LAST}.lora_A.weight"] = Tensor.of(np.ones(128))


def of_three_dimensions(tensors: Tensors) -> None:
    tensors[f"{LAST}.lora_B.weight"] = Tensor.of(np.ones((8, 64, 8)))


def without_tensors(tensors: Tensors) -> None:
    tensors.clear()


SPOILS = [
    *(too_large, too_wide, above_the_rank, without_its_a, without_its_b),
    *(of_one_dimension, of_three_dimensions, without_tensors),
]


@pytest.fixture(params=SPOILS, ids=lambda spoil: spoil.__name__)
def crafted(request: pytest.FixtureRequest, tiny_base: Base, tmp_path: Path) -> Path:
    """A folder that the gate would never write: strong where it is whole, so that its traces would be heard."""
    tensors = adapter_tensors(tiny_base, 8, modules=ALL_LINEAR, seed=99, strength=1.0)
    request.param(tensors)
    return write_adapter(tmp_path / "crafted", adapter_config(8, modules=ALL_LINEAR), tensors)


def test_a_half_failed_load_and_its_retries_leave_every_answer_and_every_place_as_they_were(
    real_server: RealServer, strong_adapters: list[Path], crafted: Path
) -> None:
    engine = real_server.engine

    async def story() -> None:
        loaded = [await engine.load(f"healthy-{crafted.parent.name}-{rank}", strong_adapters[rank]) for rank in (0, 1)]
        try:
            golden = [await engine.sample(PROMPT, who, max_tokens=8) for who in (None, *loaded)]
            held = await held_by(engine)
            for attempt in range(3):
                with pytest.raises(AdapterRejectedError):
                    await engine.load("crafted", crafted)
                assert await held_by(engine) == held, attempt
                assert_all_same([await engine.sample(PROMPT, who, max_tokens=8) for who in (None, *loaded)], golden)
            # Both slots at once: one that the failure had kept would be missing here.
            together = await asyncio.gather(*(engine.sample(PROMPT, who, max_tokens=8) for who in (None, *loaded)))
            assert_all_same(together, golden)
        finally:
            for adapter in loaded:
                await engine.unload(adapter)

    real_server.live.call(story())
    assert engine.health() is Health.READY


def test_the_place_of_a_failed_load_is_taken_by_the_next_one_with_its_own_weights(
    real_server: RealServer, strong_adapters: list[Path], tiny_base: Base, tmp_path: Path
) -> None:
    """Healthy first, crafted in between, healthy again: in as many turns as there are slots, and one more."""
    engine = real_server.engine
    tensors = adapter_tensors(tiny_base, 8, modules=ALL_LINEAR, seed=99, strength=1.0)
    too_large(tensors)
    crafted = write_adapter(tmp_path / "crafted", adapter_config(8, modules=ALL_LINEAR), tensors)
    only_queries = make_adapter_folder(tmp_path / "queries", tiny_base, modules=["q_proj"], seed=5, strength=1.0)

    async def story() -> None:
        expected = await alone(engine, only_queries, "before")
        for turn in range(SLOTS + 1):
            victim = await alone(engine, strong_adapters[0], f"victim-{turn}")
            with pytest.raises(AdapterRejectedError):
                await engine.load(f"crafted-{turn}", crafted)
            # It changes one kind of layer: whatever else was left in the slot would be heard in its answer.
            again = await alone(engine, only_queries, f"after-{turn}")
            assert_all_same([again], [expected])
            assert again.token_ids != victim.token_ids

    real_server.live.call(story())


def test_the_gate_got_round_over_http_nobody_hears_anothers_adapter(
    server: RealServer, monkeypatch: pytest.MonkeyPatch, crafted: Path
) -> None:
    golden = goldens(server)
    resident = leases(server).keys()
    monkeypatch.setattr("adapters.versions.admit", admit_anything)
    name = "crafted"
    published = server.registry.versions.publish(
        OPERATOR, "globex", name, folder_members(crafted), base=server.base.fingerprint
    )
    server.registry.aliases.promote(OPERATOR, "globex", name, published.version.number)

    for _ in range(3):
        answer = chat(server, server.globex, adapter=name)
        assert answer.status_code >= 400, answer.text
        assert not any(text in answer.text for text in golden)
        assert goldens(server) == golden
    assert leases(server).keys() == resident
    assert not any(leases(server).values())


def goldens(server: RealServer) -> list[str]:
    """What acme, globex and the base say."""
    return [
        text_of(chat(server, server.acme, adapter="support")),
        text_of(chat(server, server.globex, adapter="support")),
        text_of(chat(server, server.acme)),
    ]


def admit_anything(members: Iterable[Member], staged: Path, base: Base, *_: Any, **__: Any) -> Admitted:
    """A gate that looks at nothing."""
    folder = staged / "canonical"
    folder.mkdir()
    for name, stream in members:
        if name in ADAPTER_FILES:
            (folder / name).write_bytes(stream.read())
    config = json.loads((folder / "adapter_config.json").read_bytes())
    manifest = Manifest(
        digest=digest_folder(folder),
        kind=Kind.LORA,
        rank=config["r"],
        alpha=config["lora_alpha"],
        target_modules=tuple(sorted(config["target_modules"])),
        dtype="F32",
        tensor_count=1,
        size_bytes=1,
        base_fingerprint=base.fingerprint,
    )
    return Admitted(folder, manifest, ())


async def alone(engine: Engine, folder: Path, name: str) -> Sample:
    """What the adapter says, loaded for this one question."""
    adapter: LoadedAdapter = await engine.load(name, folder)
    try:
        return await engine.sample(PROMPT, adapter, max_tokens=8)
    finally:
        await engine.unload(adapter)


async def held_by(engine: Any) -> set[int]:
    """The ids that vLLM holds in host RAM."""
    held: set[int] = set(await engine._llm.list_loras())
    assert len(held) <= HOST_SLOTS
    return held


def assert_all_same(found: Iterable[Sample], expected: Iterable[Sample]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
