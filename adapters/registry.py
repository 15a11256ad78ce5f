"""The registry: its parts, held together. Knows nothing of HTTP, engines or command lines.

Safe to use from several threads at once, and from several processes on one home.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Self

from sqlalchemy import URL

from adapters.aliases import Aliases
from adapters.bases import Bases
from adapters.database import Database
from adapters.errors import StorageError
from adapters.keys import Keys
from adapters.limits import Limits
from adapters.listing import Adapters
from adapters.resolve import resolve
from adapters.store import Store
from adapters.tenants import Tenants
from adapters.values import Caller, Target, VerifiedBlob
from adapters.verify import verify
from adapters.versions import Versions


class Registry:
    """Which adapters exist, whose they are, which version is live, where the bytes lie. Close it when done."""

    def __init__(self, database: Database, store: Store, limits: Limits) -> None:
        self._database = database
        self.limits = limits
        self.store = store
        self.tenants = Tenants(database)
        self.keys = Keys(database)
        self.bases = Bases(database)
        self.adapters = Adapters(database)
        self.versions = Versions(database, store, self.bases, limits)
        self.aliases = Aliases(database)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the database's connections back."""
        self._database.close()

    def resolve(self, caller: Caller, name: str) -> Target:
        """The version that `name` means for `caller`: `support`, `support@3`, `support@canary`; `acme/` may precede it.

        Raises:
            ForbiddenError: the caller may not ask adapters at all.
            InvalidError: `invalid_adapter_name`: nothing can be called that.
            NotFoundError: `adapter_not_found`, in the same words for every reason.
        """
        return resolve(self._database, caller, name)

    def folder(self, digest: str) -> Path:
        """The absolute path of a version's read-only files, read again to the last byte.

        Raises:
            NotFoundError: `digest_not_found`.
            StorageError: `blob_damaged`: they are not what was published.
        """
        return self.store.verify(digest)

    def verify(self, caller: Caller) -> Iterator[VerifiedBlob]:
        """Read all that is stored again; what is damaged is set aside. See `adapters.verify`."""
        return verify(self._database, self.store, caller)


def open_registry(
    home: Path, database_url: str | None = None, *, max_rank: int | None = None, max_upload_bytes: int | None = None
) -> Registry:
    """Open the registry that lives in `home`, making it on first use and migrating it after an upgrade.

    Raises:
        StorageError: the disk or the database can't be used, or a newer program's registry is there.
        InvalidError: `invalid_database_url`.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"The registry's home can't be made: {error.strerror}.") from error
    chosen = {"max_rank": max_rank, "max_upload_bytes": max_upload_bytes}
    limits = Limits(**{name: value for name, value in chosen.items() if value is not None})
    store = Store(home / "store")
    sqlite = URL.create("sqlite", database=str(home / "registry.db")).render_as_string()
    return Registry(Database(database_url or sqlite), store, limits)
