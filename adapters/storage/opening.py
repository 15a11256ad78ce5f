"""Which place for bytes the settings mean."""

import logging
import re
from pathlib import Path
from typing import Final

from adapters.errors import InvalidError, StorageError
from adapters.storage.cache import DEFAULT_CACHE_BYTES, Cache
from adapters.storage.local import LocalBlobs
from adapters.storage.objects import Objects
from adapters.storage.protocol import Blobs
from adapters.storage.remote import RemoteBlobs

log = logging.getLogger(__name__)

_S3_URL: Final = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9_][A-Za-z0-9_.=-]*)*)/?")
_ENDPOINT: Final = re.compile(r"https?://[^/?#@\s]+(?:/[^?#@\s]*)?")


def open_blobs(
    home: Path, *, store_url: str | None = None, store_endpoint: str | None = None, cache_bytes: int | None = None
) -> Blobs:
    """The blobs of a registry: in `home`, or in the bucket that `store_url` names, read through a cache in `home`.

    A store that is down at the moment stops nobody: what is cached is served, and the rest when it is back.

    Raises:
        InvalidError: `invalid_store_url`, `invalid_store_endpoint`; `driver_not_installed`.
        StorageError: the disk can't be used; `store_misconfigured`: no or wrong credentials, no such bucket.
    """
    if store_url is None:
        if store_endpoint is not None:
            raise InvalidError("A store's endpoint means nothing without its URL.", code="invalid_store_endpoint")
        return LocalBlobs(home / "store")
    objects = _objects(store_url, store_endpoint)
    cache = Cache(home / "cache", budget_bytes=DEFAULT_CACHE_BYTES if cache_bytes is None else cache_bytes)
    blobs = RemoteBlobs(objects, cache)
    try:
        objects.ready()
    except StorageError as error:
        if error.code == "store_misconfigured":
            raise
        log.warning("the object store does not answer: only what is cached can be served")
    return blobs


def _objects(store_url: str, endpoint: str | None) -> Objects:
    # Neither is said again in a message: people write passwords into URLs.
    url = _S3_URL.fullmatch(store_url)
    if url is None:
        raise InvalidError("A store's URL is s3://bucket or s3://bucket/folder.", code="invalid_store_url")
    if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):
        raise InvalidError("A store's endpoint is https://host or http://host:port.", code="invalid_store_endpoint")
    try:
        from adapters.storage.obstore import S3Objects  # noqa: PLC0415  — an extra
    except ModuleNotFoundError as error:
        if error.name != "obstore":
            raise
        message = "Object stores need obstore: pip install 'lorikeet[s3]'."
        raise InvalidError(message, code="driver_not_installed") from error
    return S3Objects(url[1], url[2].strip("/"), endpoint=endpoint)
