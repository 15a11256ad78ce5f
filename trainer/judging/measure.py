"""What one side does with the held-out examples and the regression set: one value an example, nothing averaged.

What a base does is measured once: by its fingerprint, the questions and the libraries, it is found again in the cache.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from trainer.judging.abilities import Abilities, Item
from trainer.judging.choices import Choice, likelihoods_of_choices
from trainer.judging.questions import answer_tokens
from trainer.judging.speaker import Speaker, Watch
from trainer.judging.values import Judgement, Measured, Question
from trainer.progress import Narrator
from trainer.supervision import IGNORED, Example, PreferenceExample

ABILITY_TOKENS: Final = 24
SAID_EVERY_SECONDS: Final = 5.0


def measure(
    speaker: Speaker, asked: Judgement, questions: Sequence[Question], who: str, narrator: Narrator
) -> Measured:
    """All that is asked for, of one side; `who` is what it is called on the way."""
    # The held-out examples: how likely they are, and what is said in their place
    with _watched(narrator, f"{who}: held-out loss") as watch:
        examples = speaker.likelihoods(asked.task.examples, watch)
        pairs = speaker.likelihoods(list(_as_examples(asked.task.preferences)), watch)
    with _watched(narrator, f"{who}: answers to {len(questions)} held-out prompts") as watch:
        answers = speaker.answers(
            [question.prompt_ids for question in questions],
            max_new_tokens=answer_tokens(questions, asked.rules.max_new_tokens),
            watch=watch,
        )

    # What it can do in general
    abilities: tuple[bool, ...] = ()
    if asked.abilities is not None:
        with _watched(narrator, f"{who}: {len(asked.abilities.items)} general questions") as watch:
            abilities = _abilities(speaker, asked.abilities, watch)
    return Measured(examples=examples, chosen=pairs[0::2], rejected=pairs[1::2], answers=answers, abilities=abilities)


def cached_path(asked: Judgement, questions: Sequence[Question]) -> Path | None:
    """Where what was measured of the base is kept; None: it is no base as it is, or there is no cache."""
    if asked.cache is None or asked.base.fingerprint is None:
        return None
    task = asked.task
    made_of = {
        "base": asked.base.fingerprint,
        "abilities": asked.abilities.digest if asked.abilities else None,
        "precision": asked.precision,
        "questions": [question.prompt_ids for question in questions],
        "max_new_tokens": answer_tokens(questions, asked.rules.max_new_tokens),
        "examples": [[example.input_ids, example.labels] for example in task.examples],
        "preferences": [[pair.prompt_ids, pair.chosen_ids, pair.rejected_ids] for pair in task.preferences],
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    return asked.cache / f"{digest}.json"


def read_cached(path: Path | None) -> Measured | None:
    """What was measured earlier, if it is there and whole."""
    try:
        return Measured.model_validate_json(path.read_bytes()) if path is not None else None
    except (OSError, ValidationError):
        return None


def write_cached(path: Path | None, measured: Measured) -> None:
    """Keep it for the next time."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(measured.model_dump_json())
    partial.replace(path)


def _as_examples(pairs: Iterable[PreferenceExample]) -> Iterator[Example]:
    """The chosen, the rejected, the next chosen, and so on."""
    for pair in pairs:
        for answer in (pair.chosen_ids, pair.rejected_ids):
            yield Example([*pair.prompt_ids, *answer], [IGNORED] * len(pair.prompt_ids) + list(answer))


# --- the regression set -----------------------------------------------------------------------------------------------


def _abilities(speaker: Speaker, abilities: Abilities, watch: Watch) -> tuple[bool, ...]:
    choosing = [item for item in abilities.items if item.choices]
    speaking = [item for item in abilities.items if not item.choices]
    likelihoods = iter(likelihoods_of_choices(speaker, [_choice(item, speaker.tokenizer) for item in choosing], watch))
    answers = iter(
        speaker.answers(
            [_free_prompt(item, speaker.tokenizer) for item in speaking], max_new_tokens=ABILITY_TOKENS, watch=watch
        )
    )
    right = []
    for item in abilities.items:
        if item.choices:
            of_right, *of_wrong = next(likelihoods)
            right.append(of_right > max(of_wrong))
        else:
            right.append(item.accepts(next(answers).text))
    return tuple(right)


def _choice(item: Item, tokenizer: Any) -> Choice:  # noqa: ANN401  — transformers
    question = tokenizer(f"Question: {item.question}\nAnswer:", add_special_tokens=True)["input_ids"]
    answers = (tokenizer(f" {choice}", add_special_tokens=False)["input_ids"] for choice in item.choices)
    return Choice(tuple(question), tuple(map(tuple, answers)))


def _free_prompt(item: Item, tokenizer: Any) -> tuple[int, ...]:  # noqa: ANN401  — transformers
    if not tokenizer.chat_template:
        return tuple(tokenizer(f"{item.question}\n", add_special_tokens=True)["input_ids"])
    turns = [{"role": "user", "content": item.question}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])


@contextmanager
def _watched(narrator: Narrator, what: str) -> Iterator[Watch]:
    """A line when it is done, and one every few seconds until then."""
    with narrator.step(what):
        yield _Watch(narrator, what)


class _Watch:
    def __init__(self, narrator: Narrator, what: str) -> None:
        self._narrator = narrator
        self._what = what
        self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._said >= SAID_EVERY_SECONDS:
            self._said = time.monotonic()
            self._narrator.say(f"{self._what}: {done}/{total}")
