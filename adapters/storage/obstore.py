"""Objects in a bucket of S3 or of a store that speaks like it. The one module that knows obstore.

Region and credentials are obstore's own to find: AWS_REGION, AWS_ACCESS_KEY_ID and so on, a web identity, the machine's
role. Its errors hold URLs and keys: they go on as the cause (for the log), never in a message. Its
threads do not survive a fork: a child that asks it anything waits for ever, so processes that need it are spawned.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from adapters.errors import NotFoundError, StorageError
from adapters.storage.objects import StoredObject

_PART_BYTES: Final = 8 << 20
_PARTS_AT_ONCE: Final = 4
"""32 MiB of memory for one transfer, whatever its size."""

_MISCONFIGURED: Final = {
    "NoSuchBucket": "The registry's object store has no such bucket.",
    "status code: 403|status code: 401|ExpiredToken|InvalidToken|/latest/api/token|/latest/meta-data/": (
        "The registry's object store does not accept our credentials for this, or there are none."
    ),
    "incorrectly configured region|AuthorizationHeaderMalformed|status code: 3": (
        "The registry's bucket is in another region of its object store: set AWS_REGION."
    ),
    "builder error": "The object store's endpoint can't be used: one that is http must be LORIKEET_STORE_ENDPOINT.",
}
"""By what stands in an error's text: obstore has no types for these. /latest/ is where a machine is asked its role."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the store may take."""

    connect_seconds: float = 5
    silence_seconds: float = 30
    """Without one byte of an answer; a part's upload is inside it."""
    request_seconds: float = 60
    """One request; large files are many."""
    retries: int = 6
    """With jitter, 0.1 s before the first, twice as long before each next one."""
    budget_seconds: float = 60
    """No retry begins later than this after its first attempt."""


_ONE_LOOK: Final = Patience(connect_seconds=3, silence_seconds=3, request_seconds=4, retries=1, budget_seconds=4)


class S3Objects:
    """`Objects` in a bucket, below a prefix."""

    def __init__(
        self, bucket: str, prefix: str = "", *, endpoint: str | None = None, patience: Patience | None = None
    ) -> None:
        """Reach for nothing yet. An endpoint may be http: it was given by name."""
        self._store = _store(bucket, prefix, endpoint, patience or Patience())
        self._at_a_glance = _store(bucket, prefix, endpoint, _ONE_LOOK)

    def ready(self) -> None:
        """See `Objects`."""
        with _store_errors():
            obstore.list_with_delimiter(self._at_a_glance, "sha256/0")

    def list(self, folder: str, *, at_a_glance: bool = False) -> Mapping[str, StoredObject]:
        """See `Objects`."""
        with _store_errors():
            found = obstore.list_with_delimiter(self._asked(at_a_glance=at_a_glance), folder)["objects"]
        return {one["path"].rpartition("/")[2]: StoredObject(one["size"], one["e_tag"]) for one in found}

    def upload(self, key: str, file: Path) -> None:
        """See `Objects`."""
        with file.open("rb") as content, _store_errors():
            obstore.put(self._store, key, content, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)

    def put(self, key: str, content: bytes) -> None:
        """See `Objects`."""
        with _store_errors():
            obstore.put(self._store, key, content, use_multipart=False)

    def create(self, key: str, content: bytes) -> bool:
        """See `Objects`."""
        try:
            with _store_errors():
                obstore.put(self._store, key, content, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def read(self, key: str) -> bytes:
        """See `Objects`."""
        with _store_errors():
            return bytes(obstore.get(self._store, key).bytes())

    def download(self, key: str, file: Path, size_bytes: int) -> None:
        """See `Objects`."""
        with file.open("wb") as written:
            for first in range(0, size_bytes, _PART_BYTES * _PARTS_AT_ONCE):
                starts = range(first, min(first + _PART_BYTES * _PARTS_AT_ONCE, size_bytes), _PART_BYTES)
                ends = [min(start + _PART_BYTES, size_bytes) for start in starts]
                with _store_errors():
                    parts = obstore.get_ranges(self._store, key, starts=starts, ends=ends, coalesce=0)
                for part in parts:
                    written.write(part)

    def delete(self, keys: Sequence[str], *, at_a_glance: bool = False) -> None:
        """See `Objects`."""
        if keys:
            with _store_errors():
                obstore.delete(self._asked(at_a_glance=at_a_glance), keys)

    def _asked(self, *, at_a_glance: bool) -> S3Store:
        return self._at_a_glance if at_a_glance else self._store


def _store(bucket: str, prefix: str, endpoint: str | None, patience: Patience) -> S3Store:
    with _store_errors():
        return S3Store(
            bucket,
            prefix=prefix or None,
            config={} if endpoint is None else {"endpoint": endpoint},
            client_options={
                "allow_http": endpoint is not None,
                "connect_timeout": timedelta(seconds=patience.connect_seconds),
                "read_timeout": timedelta(seconds=patience.silence_seconds),
                "timeout": timedelta(seconds=patience.request_seconds),
            },
            retry_config={
                "max_retries": patience.retries,
                "retry_timeout": timedelta(seconds=patience.budget_seconds),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=5),
                    "base": 2,
                },
            },
        )


@contextmanager
def _store_errors() -> Iterator[None]:
    """obstore's errors as ours. What a caller would do something about passes: AlreadyExistsError."""
    try:
        yield
    except AlreadyExistsError:
        raise
    except FileNotFoundError as error:
        _raise_if_misconfigured(error)
        raise NotFoundError("There is nothing with this digest.", code="digest_not_found") from error
    except BaseError as error:
        _raise_if_misconfigured(error)
        raise StorageError("The registry's object store does not answer, or fails.") from error


def _raise_if_misconfigured(error: Exception) -> None:
    for pattern, message in _MISCONFIGURED.items():
        if re.search(pattern, str(error)):
            raise StorageError(message, code="store_misconfigured") from error
