"""The registry: its parts, held together. Knows nothing of HTTP, engines or command lines.

Safe to use from several threads at once, and from several processes on one home.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import disk_usage
from typing import Self

from sqlalchemy import URL

from adapters.access import Action, allow
from adapters.aliases import Aliases
from adapters.audit import AuditRow, read_audit
from adapters.bases import Bases
from adapters.callers import Caller
from adapters.collect import CollectedBlob, collect
from adapters.database import Database
from adapters.errors import NotFoundError, StorageError
from adapters.grants import Grants
from adapters.keys import Keys
from adapters.limits import Limits
from adapters.listing import Adapters
from adapters.lookups import DEFAULT_PAGE, stored_bytes
from adapters.names import Reference
from adapters.resolve import resolve
from adapters.storage import Blobs, Staging, open_blobs
from adapters.tenants import Tenants
from adapters.transfer import Intake, Transfer, export_to, import_from
from adapters.uploads import Uploads
from adapters.usage import UsageLedger
from adapters.values import Base, DiskUse, Target
from adapters.verify import VerifiedBlob, verify
from adapters.versions import Versions


class Registry:
    """Which adapters exist, whose they are, which version is live, where the bytes lie. Close it when done."""

    def __init__(self, database: Database, blobs: Blobs, home: Path, limits: Limits) -> None:
        self._database = database
        self._blobs = blobs
        self.home = home
        self.limits = limits
        self.staging = Staging(home / "store" / "staging")
        self.tenants = Tenants(database)
        self.keys = Keys(database)
        self.bases = Bases(database)
        self.adapters = Adapters(database)
        self.versions = Versions(database, blobs, self.staging, self.bases, limits)
        self.uploads = Uploads(database, home / "store" / "uploads", self.versions, limits)
        self.aliases = Aliases(database)
        self.grants = Grants(database)
        self.usage = UsageLedger(database)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the database's connections back."""
        self._database.close()

    def resolve(self, caller: Caller, name: str, sticky: str | None = None) -> Target:
        """The version that `name` means for `caller`: `support`, `support@3`, `support@canary`.

        `acme/` before it says whose it is: the caller's own tenant, or one that granted it. Where an alias is split,
        the same `sticky` means the same version; without it, any by the weights.

        Raises:
            ForbiddenError: the caller may not ask adapters at all.
            InvalidError: `invalid_adapter_name`: nothing can be called that.
            NotFoundError: `adapter_not_found`, in the same words for every reason.
        """
        return resolve(self._database, caller, name, sticky)

    def hold(self, digest: str) -> AbstractContextManager[Path]:
        """The absolute path of a version's read-only files, read again to the last byte; kept while the block lasts.

        Raises:
            NotFoundError: `digest_not_found`.
            StorageError: `blob_damaged`: they are not what was published.
        """
        return self._blobs.hold(digest)

    @contextmanager
    def hold_base(self, caller: Caller, reference: str) -> Iterator[Base]:
        """A base with the `path` of its checkpoint: for a `merged` or `full` version, its files, kept during the block.

        Raises:
            NotFoundError: `base_not_found`, or `digest_not_found`.
            StorageError: `blob_damaged`.
        """
        base = self.bases.find(caller, reference)
        if base.version is None:
            yield base
            return
        name = Reference.parse(base.version)
        version = self.versions.get(Caller.operator(), name.tenant or "", name.adapter, int(name.selector))
        if not version.state.is_servable:
            raise NotFoundError(f"The model {version.label} is {version.state}.", code="base_not_found")
        with self.hold(version.manifest.digest) as folder:
            yield replace(base, path=str(folder))

    def audit(
        self, caller: Caller, *, tenant: str | None = None, before: int | None = None, limit: int = DEFAULT_PAGE
    ) -> list[AuditRow]:
        """Who did what, the newest first. See `adapters.audit`."""
        return read_audit(self._database, caller, tenant=tenant, before=before, limit=limit)

    def disk_use(self, caller: Caller) -> DiskUse:
        """How much of this machine's disk versions take, and may take. Platform only.

        Raises:
            StorageError: the disk or the database failed.
        """
        allow(caller, Action.OPERATE)
        cached = self._blobs.cache_use()
        if cached is not None:
            return cached
        with self._database.read() as connection:
            return DiskUse(stored_bytes(connection), None)

    def verify(self, caller: Caller) -> Iterator[VerifiedBlob]:
        """Read all that is stored again; what is damaged is set aside. See `adapters.verify`."""
        return verify(self._database, self._blobs, caller)

    def collect(self, caller: Caller, *, grace_seconds: float) -> Iterator[CollectedBlob]:
        """Take away the bytes that nothing needs any more. See `adapters.collect`."""
        return collect(self._database, self._blobs, caller, grace_seconds=grace_seconds)

    def free_bytes(self) -> int:
        """Free on the disk of the home.

        Raises:
            OSError: the disk can't be asked.
        """
        return disk_usage(self.home).free

    def export_to(self, caller: Caller, folder: Path, *, tenant: str | None = None) -> Iterator[Transfer]:
        """Copy a tenant, or all, into a new folder: a backup. See `adapters.transfer.export`."""
        return export_to(self._database, self._blobs, caller, folder, tenant=tenant, home=self.home)

    def import_from(self, caller: Caller, folder: Path) -> Iterator[Transfer]:
        """Enter what an export holds. See `adapters.transfer.load`."""
        return import_from(Intake(self._database, self._blobs, self.staging, self.limits), caller, folder)


def open_registry(
    home: Path,
    database_url: str | None = None,
    *,
    store_url: str | None = None,
    store_endpoint: str | None = None,
    cache_bytes: int | None = None,
    limits: Limits | None = None,
) -> Registry:
    """Open the registry that lives in `home`, making it on first use and migrating it after an upgrade.

    Raises:
        StorageError: the disk, the store or the database can't be used, or a newer program's registry is there.
        InvalidError: `invalid_database_url`, or what `open_blobs` says of the store.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"The registry's home can't be made: {error.strerror}.") from error
    blobs = open_blobs(home, store_url=store_url, store_endpoint=store_endpoint, cache_bytes=cache_bytes)
    sqlite = URL.create("sqlite", database=str(home / "registry.db")).render_as_string()
    return Registry(Database(database_url or sqlite), blobs, home, limits or Limits())
