"""Those who ask: every answer is compared with the word of the version that it says it is from."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from tests.canary.stages import NAMES, TENANTS, VERSIONS, Stage, labels

QUESTIONS: Final = ("Where is my order?", "How much for the lamp?", "Where is my tent?", "How much for the radio?")
MAX_TOKENS: Final = 8
BASE: Final = "base"
HANG_UP_SHARE, BASE_SHARE, STREAM_SHARE, NUMBER_SHARE = 0.05, 0.1, 0.5, 0.3


@dataclass
class Tally:
    """What became of the requests."""

    answers: Counter[str] = field(default_factory=Counter)
    """Right ones, by the version that answered."""
    wrong: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    """503 and 429, by code."""
    cut: int = 0
    """Streams that ended with an error event, and connections that broke: only when an engine was killed."""
    hung_up: int = 0
    unexplained: Counter[str] = field(default_factory=Counter)

    @property
    def right(self) -> int:
        return self.answers.total()


@dataclass(frozen=True)
class _Question:
    tenant: str
    adapter: str | None
    number: int | None
    is_stream: bool
    hangs_up: bool
    text: str

    @property
    def body(self) -> dict[str, Any]:
        name = None if self.adapter is None else self.adapter + (f"@{self.number}" if self.number else "")
        message = {"role": "user", "content": self.text}
        asked = {"messages": [message], "temperature": 0, "max_tokens": MAX_TOKENS, "stream": self.is_stream}
        return asked | ({"adapter": name} if name else {})

    def may_answer(self, label: str) -> bool:
        """Whether this version, or the base, is among those that were asked."""
        if self.adapter is None:
            return label == BASE
        numbers = [self.number] if self.number else VERSIONS
        return label in {f"{self.tenant}/{self.adapter}@{number}" for number in numbers}


async def learn_words(stage: Stage) -> dict[str, frozenset[str]]:
    """Each version's own word: what it says when it is asked alone. No two say the same."""
    words: dict[str, frozenset[str]] = {}
    async with httpx.AsyncClient(base_url=stage.url, timeout=120) as client:
        for label in labels():
            tenant, _, name = label.partition("/")
            adapter, _, number = name.partition("@")
            asked = _Question(tenant, adapter, int(number), is_stream=False, hangs_up=False, text=QUESTIONS[0])
            answer = await client.post("/v1/chat/completions", json=asked.body, headers=_headers(stage, tenant))
            answer.raise_for_status()
            words[label] = word_of(answer.json()["choices"][0]["message"]["content"])
    if len(set(words.values())) != len(words) or any(len(word) != 1 for word in words.values()):
        raise SystemExit(f"these canaries do not each say their own word: {words}")
    return words


def word_of(text: str) -> frozenset[str]:
    """What it is made of, without what the fake engine counts its words by."""
    return frozenset(word.partition("-")[0] for word in text.split())


class Visitors:
    """Ask again and again, several at once, until it is `over`."""

    def __init__(self, stage: Stage, words: Mapping[str, frozenset[str]], seed: int) -> None:
        self._stage = stage
        self._words = words
        self._random = random.Random(seed)
        self.tally = Tally()
        self.over = asyncio.Event()

    async def ask(self, at_once: int) -> None:
        """Until it is `over`."""
        limits = httpx.Limits(max_connections=at_once)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            await asyncio.gather(*(self._visit(client) for _ in range(at_once)))

    async def _visit(self, client: httpx.AsyncClient) -> None:
        while not self.over.is_set():
            question = self._question()
            try:
                await self._ask(client, question)
            except httpx.TransportError:
                self.tally.cut += 1
                await asyncio.sleep(0.2)

    def _question(self) -> _Question:
        chance = self._random.random
        return _Question(
            tenant=self._random.choice(TENANTS),
            adapter=None if chance() < BASE_SHARE else self._random.choice(NAMES),
            number=self._random.choice(VERSIONS) if chance() < NUMBER_SHARE else None,
            is_stream=chance() < STREAM_SHARE,
            hangs_up=chance() < HANG_UP_SHARE,
            text=self._random.choice(QUESTIONS),
        )

    async def _ask(self, client: httpx.AsyncClient, question: _Question) -> None:
        url, headers = f"{self._stage.url}/v1/chat/completions", _headers(self._stage, question.tenant)
        async with client.stream("POST", url, json=question.body, headers=headers) as response:
            if response.status_code != 200:
                self._note_refusal(response.status_code, await response.aread())
                await asyncio.sleep(0.05)
                return
            if question.hangs_up:
                self.tally.hung_up += 1
                return
            label = response.headers.get("x-lorikeet-adapter", BASE)
            text, models, is_cut = await (_streamed if question.is_stream else _whole)(response)
        if is_cut:
            self.tally.cut += 1
        else:
            self._judge(question, label, text, models)

    def _note_refusal(self, status: int, body: bytes) -> None:
        try:
            code = json.loads(body)["error"]["code"]
        except (ValueError, KeyError, TypeError):
            code = "?"
        (self.tally.refused if status in {429, 503} else self.tally.unexplained)[f"{status} {code}"] += 1

    def _judge(self, question: _Question, label: str, text: str, models: set[str]) -> None:
        word = word_of(text)
        expected = self._words.get(label)
        is_own_word = word == expected if expected else word not in self._words.values()
        is_named = label == BASE or models == {label}
        if question.may_answer(label) and is_own_word and is_named:
            self.tally.answers[label] += 1
        else:
            self.tally.wrong.append(f"{question} → {label} as {models}: {text!r}")


async def _whole(response: httpx.Response) -> tuple[str, set[str], bool]:
    page = json.loads(await response.aread())
    return page["choices"][0]["message"]["content"] or "", {page["model"]}, False


async def _streamed(response: httpx.Response) -> tuple[str, set[str], bool]:
    """The text, the models that the chunks name, and whether it ended with an error or not at all."""
    text, is_done = "", False
    models: set[str] = set()
    async for line in response.aiter_lines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            is_done = True
            continue
        chunk = json.loads(line.removeprefix("data: "))
        if "error" in chunk:
            return text, models, True
        models.add(chunk["model"])
        text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    return text, models, not is_done


def _headers(stage: Stage, tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer {stage.keys[tenant]}"}
