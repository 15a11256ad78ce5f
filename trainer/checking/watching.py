"""Progress of a loop over rows: nothing in the first two seconds, then a line every few."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from trainer.progress import Narrator

FIRST_SECONDS = 2.0
LINE_SECONDS = 5.0

Item = TypeVar("Item")


class Watch:
    """`for row in watch(rows, "reading rows", total)` tells how far it is."""

    def __init__(self, narrator: Narrator) -> None:
        self._narrator = narrator

    def __call__(self, items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
        """The same items."""
        began = time.monotonic()
        next_line, done = began + FIRST_SECONDS, 0
        for done, item in enumerate(items, start=1):
            yield item
            if (now := time.monotonic()) >= next_line:
                self._narrator.say(f"{what}: {done} of {total}")
                next_line = now + LINE_SECONDS
        if next_line > began + FIRST_SECONDS:
            self._narrator.say(f"{what}: {done} in {time.monotonic() - began:.0f} s")
