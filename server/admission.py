"""Whose upload may come in now: one of each tenant, and a few in all, for each takes up disk."""

from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import UploadInProgressError


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
