"""Runs of words: two texts are as alike as they share them (Jaccard's measure), wherever in the text they stand.

Nearly equal texts among many are found by MinHash (datasketch), then measured exactly. What many prompts have in
common, such as the instruction of a task, is not counted: rows would all be alike by it.
"""

import re
import zlib
from collections import Counter
from collections.abc import Collection, Sequence

from datasketch import MinHash, MinHashLSH

from trainer.checking.said import asked, told
from trainer.dataset import Row

RUN = 3
"""Words; or characters, four times as many, of a text that has no spaces between its words."""
LONGEST_WORD = 16
"""Above this on the average, there are no spaces between words."""
HASHES = 128
FOUND = 0.995
"""The share of texts as alike as asked for that hashing finds; the others it passes over."""
SAMPLE = 1000
COMMON_SHARE = 0.05
COMMON_ROWS = 10
"""A run that so many rows of the sample share, and such a share of them, says nothing of the single row."""

WORDS = re.compile(r"\w+|[^\w\s]")

Shingles = frozenset[int]
"""Their hashes."""


class Shingler:
    """Makes shingles of rows, after a look at what a sample of them has in common."""

    def __init__(self, rows: Sequence[Row]) -> None:
        sample = rows[:: max(1, len(rows) // SAMPLE)]
        counts = Counter(run for row in sample for run in runs_of(asked(row)))
        least = max(COMMON_ROWS, COMMON_SHARE * len(sample))
        self._common = frozenset(run for run, count in counts.items() if count > least)

    def __call__(self, row: Row) -> Shingles:
        """The runs of a row. Those of the answer count whatever others say."""
        own = runs_of(asked(row))
        return (own - self._common or own) | runs_of(told(row))


class Alike:
    """A growing set of rows, in which one finds those nearly equal to another."""

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        bands, each = _bands(similarity)
        self._index = MinHashLSH(num_perm=HASHES, params=(bands, each))

    def find(self, shingles: Shingles, hashed: MinHash, known: "Known") -> tuple[int, float] | None:
        """The first row that is so alike, and how alike it is."""
        for key in sorted(self._index.query(hashed)):
            measured = jaccard(shingles, known(key))
            if measured >= self._similarity:
                return key, measured
        return None

    def add(self, key: int, hashed: MinHash) -> None:
        """One more row."""
        self._index.insert(key, hashed, check_duplication=False)


class Known:
    """The shingles of rows, made again whenever they are asked for: held, they would fill memory."""

    def __init__(self, shingler: Shingler, rows: Sequence[Row]) -> None:
        self._shingler = shingler
        self._rows = rows

    def __call__(self, key: int) -> Shingles:
        """Of the row with that key."""
        return self._shingler(self._rows[key])


def hashed(shingles: Collection[Shingles]) -> list[MinHash]:
    """What the index knows of texts. They are hashes already."""
    made: list[MinHash] = MinHash.bulk(shingles, num_perm=HASHES, hashfunc=int)
    return made


def runs_of(text: str) -> Shingles:
    """The runs of words of a text; all of its words, if they are too few for one."""
    words = WORDS.findall(text.casefold())
    if words and len(text) > LONGEST_WORD * len(words):
        words, run, glue = list(text), RUN * 4, ""
    else:
        run, glue = RUN, " "
    if 0 < len(words) < run:
        return frozenset({zlib.crc32(glue.join(words).encode())})
    return frozenset(
        zlib.crc32(glue.join(words[start : start + run]).encode()) for start in range(len(words) - run + 1)
    )


def jaccard(one: Shingles, other: Shingles) -> float:
    """The share of their runs that they have in common; two empty ones are equal."""
    either = len(one | other)
    return len(one & other) / either if either else 1.0


def _bands(similarity: float) -> tuple[int, int]:
    """The fewest, widest bands of hashes that find FOUND of the pairs that are so alike: fewer false candidates."""
    for each in range(HASHES, 1, -1):
        bands = HASHES // each
        if 1 - (1 - similarity**each) ** bands >= FOUND:
            return bands, each
    return HASHES, 1
