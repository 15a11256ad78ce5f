"""Blobs in an object store, read through a cache on this disk.

    sha256/<hex>/<file>          the blob's files; manifest.json comes last, and goes first: without it there is no blob
    quarantine/<uuid>/<file>     what lay under a digest and was not its own: kept until a person has looked at it

No other writer is waited for: stores have no locks. Whoever puts a digest writes the same bytes under the same keys,
and deletes only files that no blob of that digest has, so however two puts mingle, what comes out is whole. A check
that removes what is damaged may take a mended file with it: the put that mends looks again at its end, and says so.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from uuid import uuid4

from adapters.digests import MANIFEST_FILE, hex_of
from adapters.errors import NotFoundError, StorageError
from adapters.manifests import write_manifest
from adapters.storage.cache import Cache, Incoming
from adapters.storage.disk import disk_errors
from adapters.storage.local import is_whole
from adapters.storage.objects import Objects, StoredObject
from adapters.values import BlobState, DiskUse, Manifest

Found = Mapping[str, StoredObject]
"""A blob's objects by name."""


class RemoteBlobs:
    """`Blobs` in an object store. Who holds a blob has it in the cache: other machines may delete it meanwhile."""

    def __init__(self, objects: Objects, cache: Cache) -> None:
        self._objects = objects
        self._cache = cache
        self._staging = cache.staging

    def put(self, staged: Path, manifest: Manifest) -> None:
        """See `Blobs`. What is there already is fetched, for the store's word is not enough to acknowledge it."""
        folder = _folder_of(manifest.digest)
        found = self._objects.list(folder)
        if MANIFEST_FILE in found:
            with disk_errors(), self._staging.folder() as fetched:
                if self._is_whole(manifest.digest, found, fetched):
                    return
                self._quarantine(fetched)

        with disk_errors():
            write_manifest(staged / MANIFEST_FILE, manifest)
            self._store(staged, folder, found)

    def hold(self, digest: str) -> AbstractContextManager[Path]:
        """See `Blobs`. What is in the cache needs no store."""
        return self._cache.hold(digest, self._find)

    def check(self, digest: str) -> BlobState:
        """See `Blobs`. Files without a manifest are none: they may be on their way."""
        folder = _folder_of(digest)
        found = self._objects.list(folder)
        while MANIFEST_FILE in found:
            with disk_errors(), self._staging.folder() as fetched:
                if self._is_whole(digest, found, fetched):
                    return BlobState.WHOLE
                read, found = found, self._objects.list(folder)
                if read == found:  # or somebody has mended it in between
                    self._quarantine(fetched)
                    return self._mend(digest, found)
        return BlobState.MISSING

    def is_stored(self, digest: str) -> bool:
        """See `Blobs`."""
        return MANIFEST_FILE in self._objects.list(_folder_of(digest), at_a_glance=True)

    def delete(self, digest: str) -> Callable[[], None] | None:
        """See `Blobs`. Nothing is left for later: by then, the same keys may be those of a new put."""
        if not self._cache.drop(digest):
            return None
        folder = _folder_of(digest)
        self._remove(folder, self._objects.list(folder, at_a_glance=True), at_a_glance=True)
        return _nothing

    def cache_use(self) -> DiskUse | None:
        """See `Blobs`."""
        return self._cache.use()

    def _find(self, digest: str) -> Incoming:
        found = self._objects.list(_folder_of(digest))
        if MANIFEST_FILE not in found:
            raise NotFoundError("There is nothing with this digest.", code="digest_not_found")
        return Incoming(sum(one.size_bytes for one in found.values()), partial(self._fetch, digest, found))

    def _fetch(self, digest: str, found: Found, into: Path) -> None:
        if not self._is_whole(digest, found, into):
            raise StorageError(f"The stored files of {digest} have changed.", code="blob_damaged")

    def _is_whole(self, digest: str, found: Found, into: Path) -> bool:
        """Whether what was found is whole, as fetched into an empty folder."""
        for _ in range(2):  # a connection may spoil bytes as well as a store
            for name, one in found.items():
                try:
                    self._objects.download(f"{_folder_of(digest)}/{name}", into / name, one.size_bytes)
                except NotFoundError as error:  # deleted meanwhile, or a store that forgets: no reason to condemn it
                    raise StorageError("The registry's object store lists files that it does not have.") from error
            if is_whole(into, digest):
                return True
        return False

    def _mend(self, digest: str, found: Found) -> BlobState:
        """Replace what is damaged by what is cached, which may be the last good copy, or remove it."""
        with self._cache.hold_cached(digest) as files:
            if files is not None:
                self._store(files, _folder_of(digest), found)
                return BlobState.MENDED
        self._cache.drop(digest)
        self._remove(_folder_of(digest), found)
        return BlobState.DAMAGED

    def _store(self, files: Path, folder: str, found: Found) -> None:
        """Write a blob's files, and its manifest last, over what was found in its folder."""
        sizes = {path.name: path.stat().st_size for path in files.iterdir() if path.name != MANIFEST_FILE}
        for name in sorted(sizes):
            self._objects.upload(f"{folder}/{name}", files / name)
        self._objects.delete([f"{folder}/{name}" for name in found if name not in {*sizes, MANIFEST_FILE}])
        manifest = (files / MANIFEST_FILE).read_bytes()
        if MANIFEST_FILE in found:  # and it, or the rest, was damaged
            self._objects.put(f"{folder}/{MANIFEST_FILE}", manifest)
        else:
            self._commit(f"{folder}/{MANIFEST_FILE}", manifest)
        stored = {name: one.size_bytes for name, one in self._objects.list(folder).items()}
        if stored.pop(MANIFEST_FILE, None) is None or stored != sizes:
            raise StorageError("The stored files were changed by somebody else meanwhile: publish them again.")

    def _commit(self, key: str, manifest: bytes) -> None:
        """Store a manifest that may be there, perhaps from just now: an answer is lost as easily as a question."""
        try:
            if self._objects.create(key, manifest):
                return
        except StorageError:  # or the store knows no conditions
            pass
        try:
            is_there = _digest_in(self._objects.read(key)) == _digest_in(manifest)
        except NotFoundError:
            is_there = False
        if not is_there:
            self._objects.put(key, manifest)

    def _quarantine(self, fetched: Path) -> None:
        folder = f"quarantine/{uuid4().hex}"
        for path in sorted(fetched.iterdir()):
            self._objects.upload(f"{folder}/{path.name}", path)

    def _remove(self, folder: str, found: Found, *, at_a_glance: bool = False) -> None:
        if MANIFEST_FILE in found:
            self._objects.delete([f"{folder}/{MANIFEST_FILE}"], at_a_glance=at_a_glance)
        rest = [f"{folder}/{name}" for name in found if name != MANIFEST_FILE]
        self._objects.delete(rest, at_a_glance=at_a_glance)


def _nothing() -> None:
    """What is left to do when all is done."""


def _folder_of(digest: str) -> str:
    return f"sha256/{hex_of(digest)}"


def _digest_in(manifest: bytes) -> str | None:
    try:
        digest = json.loads(manifest)["digest"]
    except (ValueError, TypeError, KeyError):
        return None
    return digest if isinstance(digest, str) else None
