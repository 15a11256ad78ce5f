"""What every engine promises: vLLM and the fake are held to the same words."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from starlette.types import Message

from adapters import Base
from server.engine.fake import FakeEngine
from server.engine.protocol import AdapterRejectedError, Engine, Health, LoadedAdapter, Sample
from tests.builders import make_adapter_folder
from tests.engine.conftest import HOST_SLOTS, MAX_RANK, SLOTS, RealServer

PROMPT = "Where is my order? It was sent on Monday"
LONG_PROMPT = " ".join([PROMPT] * 12)
TOLERANCE = 1e-3
"""On natural-log probabilities. float32 sums depend on the batch's shape; the adapters move them by whole nats."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class Subject:
    """An engine that has started, and a way to run coroutines in its loop."""

    engine: Engine
    run: Callable[[Coroutine[Any, Any, Value]], Value]


@pytest.fixture(scope="module", params=["fake", pytest.param("vllm", marks=pytest.mark.engine)])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    if request.param == "vllm":
        real: RealServer = request.getfixturevalue("real_server")
        yield Subject(real.engine, real.live.call)
        return
    with asyncio.Runner() as runner:
        fake = FakeEngine(max_rank=MAX_RANK, slots=SLOTS, host_slots=HOST_SLOTS)
        runner.run(fake.start())
        yield Subject(fake, runner.run)


def holding(engine: Engine, *folders: Path) -> AbstractAsyncContextManager[list[LoadedAdapter]]:
    """The adapters loaded, for as long as the block lasts."""

    @asynccontextmanager
    async def hold() -> Any:
        loaded = [await engine.load(f"contract-{folder.name}-{id(folder)}", folder) for folder in folders]
        try:
            yield loaded
        finally:
            for adapter in loaded:
                await engine.unload(adapter)

    return hold()


def assert_same(one: Sample, other: Sample) -> None:
    assert one.token_ids == other.token_ids
    assert one.logprobs == pytest.approx(other.logprobs, abs=TOLERANCE)


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize(("prompt", "max_tokens"), [(PROMPT, 12), (LONG_PROMPT, 1)], ids=["decode", "prefill"])
def test_base_and_adapters_in_one_batch_answer_as_each_does_alone(
    subject: Subject, strong_adapters: list[Path], copies: int, prompt: str, max_tokens: int
) -> None:
    async def story() -> None:
        async with holding(subject.engine, *strong_adapters[:SLOTS]) as loaded:  # every slot is taken
            whose = [None, *loaded]
            alone = [await subject.engine.sample(prompt, who, max_tokens=max_tokens) for who in whose]
            together = await asyncio.gather(
                *(subject.engine.sample(prompt, who, max_tokens=max_tokens) for who in whose * copies)
            )
            assert len({sample.token_ids + sample.logprobs for sample in alone}) == len(whose)
            for number, sample in enumerate(together):
                assert_same(sample, alone[number % len(whose)])

    subject.run(story())


def test_more_adapters_than_slots_in_flight_at_once_all_finish_with_their_own_weights(
    subject: Subject, strong_adapters: list[Path]
) -> None:
    async def story() -> None:
        async with holding(subject.engine, *strong_adapters) as loaded:
            alone = [await subject.engine.sample(PROMPT, who, max_tokens=8) for who in loaded]
            together = await asyncio.gather(*(subject.engine.sample(PROMPT, who, max_tokens=8) for who in loaded * 3))
            for number, sample in enumerate(together):
                assert_same(sample, alone[number % len(loaded)])

    subject.run(story())


def test_unloading_an_adapter_leaves_no_trace_in_the_base_or_in_the_next_one(
    subject: Subject, strong_adapters: list[Path]
) -> None:
    async def story() -> None:
        base = await subject.engine.sample(PROMPT, None, max_tokens=8)
        async with holding(subject.engine, strong_adapters[0]) as (first,):
            expected = await subject.engine.sample(PROMPT, first, max_tokens=8)
        async with holding(subject.engine, strong_adapters[1]) as (second,):
            assert (await subject.engine.sample(PROMPT, second, max_tokens=8)).token_ids != expected.token_ids
            assert_same(await subject.engine.sample(PROMPT, None, max_tokens=8), base)
        async with holding(subject.engine, strong_adapters[0]) as (again,):
            assert_same(await subject.engine.sample(PROMPT, again, max_tokens=8), expected)

    subject.run(story())


def test_each_load_has_an_id_of_its_own(subject: Subject, strong_adapters: list[Path]) -> None:
    async def story() -> None:
        ids = []
        for _ in range(3):
            async with holding(subject.engine, strong_adapters[0]) as (adapter,):
                ids.append(adapter.int_id)
        assert len(set(ids)) == len(ids)
        assert all(0 < number < 2**31 for number in ids)

    subject.run(story())


def broken_missing(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def broken_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[]")


def broken_truncated(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize("spoil", [broken_missing, broken_config, broken_truncated])
def test_an_adapter_that_cannot_be_loaded_is_refused_and_the_engine_answers_as_before(
    subject: Subject, tiny_base: Base, strong_adapters: list[Path], tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    bad = make_adapter_folder(tmp_path / "bad", tiny_base)
    spoil(bad)

    async def story() -> None:
        async with holding(subject.engine, *strong_adapters[:SLOTS]) as loaded:
            before = [await subject.engine.sample(PROMPT, who, max_tokens=6) for who in [None, *loaded]]
            for _ in range(2):  # the second try is the one that a half-made first would let through
                with pytest.raises(AdapterRejectedError):
                    await subject.engine.load("bad", bad)
            after = [await subject.engine.sample(PROMPT, who, max_tokens=6) for who in [None, *loaded]]
            for one, other in zip(before, after, strict=True):
                assert_same(one, other)

    subject.run(story())
    assert subject.engine.health() is Health.READY


def test_a_rank_above_the_engines_is_refused(subject: Subject, tiny_base: Base, tmp_path: Path) -> None:
    folder = make_adapter_folder(tmp_path / "high", tiny_base, rank=MAX_RANK * 2)

    async def story() -> None:
        with pytest.raises(AdapterRejectedError):
            await subject.engine.load("high", folder)

    subject.run(story())


def test_probabilities_are_probabilities(subject: Subject) -> None:
    sample = subject.run(subject.engine.sample(PROMPT, None, max_tokens=5))

    assert len(sample.token_ids) == len(sample.logprobs) == 5
    assert all(logprob <= 0 for logprob in sample.logprobs)


def test_an_answer_that_nobody_reads_is_no_work_once_it_is_made(subject: Subject) -> None:
    engine = subject.engine
    asked = {"model": engine.info.base_name, "prompt": PROMPT, "max_tokens": 20, "stream": True}

    async def story() -> None:
        stopped, goes_on = asyncio.Event(), asyncio.Event()
        messages = [{"type": "http.request", "body": json.dumps(asked).encode(), "more_body": False}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await goes_on.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                stopped.set()
                await goes_on.wait()

        answering: asyncio.Task[None] = asyncio.create_task(engine.asgi(SCOPE, receive, send))  # type: ignore[arg-type]  # a coroutine it is
        await stopped.wait()
        async with asyncio.timeout(60):
            while engine.vitals().has_work:  # noqa: ASYNC110  — nothing tells of its end
                await asyncio.sleep(0.01)
        assert not answering.done()
        goes_on.set()
        await answering

    subject.run(story())


SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": "/v1/completions",
    "raw_path": b"/v1/completions",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"content-type", b"application/json")],
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 1),
    "state": {},
}
