"""Answers that end in the middle: what a limit on tokens leaves, and a model then learns to write.

Certain is an open fence or bracket, a last word that can't be one or is half of one, several different answers that end
unfinished at one and the same length, and a sentence without its end where nearly all have theirs. Less is only a hint.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

FEWEST_WORDS: Final = 5
"""Shorter answers are no sentences, and need no end."""
FEWEST_SENTENCES: Final = 10
"""Fewer of them show no habit."""
NEARLY_ALL: Final = 0.97
MOST: Final = 0.8
HALF: Final = 0.5
SAME_LENGTH_ANSWERS: Final = 3
SAME_LENGTH_CHARACTERS: Final = 40
LONGEST_WORD: Final = 16
"""Above this on the average, a script writes no spaces; it need not end as we look for."""

UNENDED: Final = re.compile(r"[\w\s,(\[{]$")
LIST_OR_HEADING: Final = re.compile(r"\s*(?:[-*+•#>|]|\d+[.)]|[A-Za-z][.)]\s)")
ADDRESS: Final = re.compile(r"(?:https?://|www\.|@)\S+$")
FENCE: Final = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)
EMOTICON: Final = re.compile(r"[:;=8xX]['-]?[(\[{]+")
EMOTICON_LAST: Final = re.compile(EMOTICON.pattern + "$")
WORD: Final = re.compile(r"[^\W\d_]+")
LAST_WORD: Final = re.compile(r"(?:^|\s)([^\W\d_]{2,})$")
OPEN_WORDS: Final = frozenset(
    {"a", "an", "the", "and", "or", "because", "although", "while", "my", "your", "our", "their"}
)
"""No sentence ends with these."""
CLOSING: Final = (("(", ")"), ("[", "]"), ("{", "}"))


@dataclass(frozen=True, slots=True)
class Habits:
    """How the answers of these data end, to judge one by."""

    ended_share: float
    """Of those that could end as sentences do; 0 if there are too few to tell."""
    limit: int | None
    """The length, in characters, at which several end unfinished and none goes on."""
    words: Counter[str]
    vocabulary: list[str]
    """The same words, in order."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What shows that an answer ends in the middle."""

    why: str
    is_certain: bool


def habits_of(answers: Sequence[str]) -> Habits:
    """Learn how answers of these data end."""
    sentences = [answer for answer in answers if _is_sentence(answer)]
    ended = sum(not _is_unfinished(answer) for answer in sentences)
    words = Counter(word for answer in answers for word in WORD.findall(answer))
    return Habits(
        ended_share=ended / len(sentences) if len(sentences) >= FEWEST_SENTENCES else 0.0,
        limit=_limit(answers),
        words=words,
        vocabulary=sorted(words),
    )


def find_cut(answer: str, habits: Habits) -> Cut | None:
    """What shows that the answer ends in the middle; None if nothing does."""
    text = answer.rstrip()
    if len(FENCE.findall(text)) % 2:
        return Cut("a code fence is not closed", is_certain=True)
    if not _is_unfinished(text):
        return None
    rules: tuple[Callable[[str, Habits], Cut | None], ...] = (_open_bracket, _open_word, _half_word, _at_limit, _unlike)
    return next((cut for rule in rules if (cut := rule(text, habits))), None)


def _open_bracket(text: str, _: Habits) -> Cut | None:
    """Emoticons open none."""
    plain = EMOTICON.sub("", text)
    for opening, closing in CLOSING:
        if plain.count(opening) > plain.count(closing) and plain.rfind(opening) > plain.rfind(closing):
            return Cut(f"a {opening} is not closed", is_certain=True)
    return None


def _open_word(text: str, _: Habits) -> Cut | None:
    last = text.rsplit(maxsplit=1)[-1]
    if len(text.split()) >= FEWEST_WORDS and (last in OPEN_WORDS or last.endswith(",")):
        return Cut(f"it ends with {last!r}", is_certain=True)
    return None


def _half_word(text: str, habits: Habits) -> Cut | None:
    """A word that stands nowhere else, and is the beginning of one that does."""
    last = LAST_WORD.search(text)
    if last is None or not _is_sentence(text) or habits.words[last[1]] != 1:
        return None
    after = bisect_right(habits.vocabulary, last[1])
    longer = habits.vocabulary[after] if after < len(habits.vocabulary) else ""
    if not longer.startswith(last[1]) or habits.words[longer] < 2:  # noqa: PLR2004  — one may be a slip itself
        return None
    return Cut(f"it ends with {last[1]!r}, half of {longer!r}", is_certain=habits.ended_share >= HALF)


def _at_limit(text: str, habits: Habits) -> Cut | None:
    if len(text) != habits.limit:
        return None
    return Cut(f"it ends unfinished at {habits.limit} characters, as others do", is_certain=True)


def _unlike(text: str, habits: Habits) -> Cut | None:
    if not _is_sentence(text) or habits.ended_share < MOST:
        return None
    why = f"it ends with {text[-20:]!r}, where {habits.ended_share:.0%} of answers end as sentences do"
    return Cut(why, is_certain=habits.ended_share >= NEARLY_ALL)


def _is_unfinished(text: str) -> bool:
    """Whether it ends without anything that could be an end."""
    text = text.rstrip()
    has_no_spaces = len(text) > LONGEST_WORD * len(text.split())
    is_whole = has_no_spaces or ADDRESS.search(text) or EMOTICON_LAST.search(text)
    return bool(UNENDED.search(text)) and not is_whole


def _is_sentence(text: str) -> bool:
    """Whether its last line could be one: no heading, no item of a list, no few words."""
    last = text.rstrip().rpartition("\n")[2]
    return len(last.split()) >= FEWEST_WORDS and not LIST_OR_HEADING.match(last)


def _limit(answers: Sequence[str]) -> int | None:
    """A length that several unfinished answers have, if none is longer."""
    texts = {answer.rstrip() for answer in answers}
    longest = max(map(len, texts), default=0)
    if longest < SAME_LENGTH_CHARACTERS:
        return None
    at_longest = sum(len(text) == longest and _is_unfinished(text) for text in texts)
    return longest if at_longest >= SAME_LENGTH_ANSWERS else None
