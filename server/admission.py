"""Whose upload may come in now: one of each tenant, and a few in all, for each takes up disk.

And who may count tokens now: that takes no turn in the queue, but memory, and time of the event loop.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from server.errors import OverloadedError, RateLimitedError, UploadInProgressError

COUNTS_AT_ONCE: Final = 32
"""Of all tenants together."""
COUNTS_OF_ONE: Final = 8
"""Of one tenant."""
RETRY: Final = {"retry-after": "1"}


class Uploads:
    """Who is uploading. Belongs to one event loop."""

    def __init__(self, *, at_once: int) -> None:
        self._at_once = at_once
        self._tenants: set[str] = set()

    @contextmanager
    def admitted(self, tenant: str) -> Iterator[None]:
        """One place for `tenant`, from before its upload's first byte is read until it is published or refused.

        Raises:
            UploadInProgressError: there is none at the moment.
        """
        if tenant in self._tenants:
            raise UploadInProgressError("Another upload of this tenant goes on: send one after the other.")
        if len(self._tenants) >= self._at_once:
            raise UploadInProgressError("As many uploads as there may be go on: come back in a moment.")
        self._tenants.add(tenant)
        try:
            yield
        finally:
            self._tenants.remove(tenant)


class Counts:
    """Who is having tokens counted. Belongs to one event loop."""

    def __init__(self) -> None:
        self._of: Counter[str] = Counter()

    @contextmanager
    def admitted(self, tenant: str) -> Iterator[None]:
        """One place for `tenant`, from before its request's body is read until it is answered.

        Raises:
            RateLimitedError: it has COUNTS_OF_ONE already.
            OverloadedError: all places are taken.
        """
        if self._of[tenant] >= COUNTS_OF_ONE:
            why = f"This tenant has tokens of {COUNTS_OF_ONE} requests counted already: come back in a second."
            raise RateLimitedError(why, code="concurrency_limit_exceeded", headers=RETRY)
        if self._of.total() >= COUNTS_AT_ONCE:
            raise OverloadedError("As many requests as may have their tokens counted: come back.", headers=RETRY)
        self._of[tenant] += 1
        try:
            yield
        finally:
            self._of[tenant] -= 1
            if not self._of[tenant]:
                del self._of[tenant]
