"""Made-up chats whose lengths are as uneven as people's: most are short, some are ten times as long.

The lengths of both sides are log-normal (sigma 0.8), roughly as those of public chat data; the sentences are drawn
from a small grammar, so that there is something to learn. The same seed gives the same chats.
"""

import random

from trainer.dataset import Conversation, Message

SUBJECTS = ("the harbour", "a garden", "the library", "our kitchen", "the old bridge", "a night train", "the market")
VERBS = ("opens", "closes", "smells of rain", "is painted blue", "wakes up", "stands empty", "is full of people")
TIMES = ("at six", "before the storm", "on Sundays", "every spring", "when the bell rings", "after the harvest")
REASONS = ("because nobody is in a hurry", "since the ferry came", "so that the children can see it", "for no reason")
QUESTION_SENTENCES, ANSWER_SENTENCES, SPREAD = 2.0, 4.0, 0.8
MOST_SENTENCES = 24


def make_chats(count: int, *, seed: int) -> tuple[Conversation, ...]:
    """So many chats of one question and one answer."""
    draw = random.Random(seed)  # noqa: S311  — to be drawn again
    return tuple(_chat(line, draw) for line in range(1, count + 1))


def _chat(line: int, draw: random.Random) -> Conversation:
    question = f"{_text(draw, QUESTION_SENTENCES)} What do you make of it?"
    answer = f"I would say this. {_text(draw, ANSWER_SENTENCES)}"
    return Conversation(line, (Message("user", question), Message("assistant", answer)))


def _text(draw: random.Random, median_sentences: float) -> str:
    count = min(MOST_SENTENCES, max(1, round(median_sentences * draw.lognormvariate(0, SPREAD))))
    return " ".join(_sentence(draw) for _ in range(count))


def _sentence(draw: random.Random) -> str:
    words = f"{draw.choice(SUBJECTS)} {draw.choice(VERBS)} {draw.choice(TIMES)} {draw.choice(REASONS)}."
    return words[0].upper() + words[1:]
