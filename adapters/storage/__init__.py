"""Where the bytes of versions lie, by digest. Knows no tenants and no database: equal bytes are one blob."""

from adapters.storage.cache import DEFAULT_CACHE_BYTES
from adapters.storage.disk import alone_in_place, disk_errors, locked
from adapters.storage.local import LocalBlobs
from adapters.storage.opening import open_blobs
from adapters.storage.protocol import Blobs
from adapters.storage.staging import Staging

__all__ = [
    "DEFAULT_CACHE_BYTES",
    "Blobs",
    "LocalBlobs",
    "Staging",
    "alone_in_place",
    "disk_errors",
    "locked",
    "open_blobs",
]
