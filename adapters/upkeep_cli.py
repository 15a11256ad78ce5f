"""`lorikeet adapters verify|collect|export|import`: what keeps a registry whole, small and safe elsewhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from adapters.callers import Caller
from adapters.collect import MAX_GRACE_HOURS
from adapters.errors import StorageError
from adapters.printing import AsJson, Columns, megabytes, print_one, print_rows, progress
from adapters.settings import RegistrySettings
from adapters.transfer import Transfer
from adapters.values import BlobState

upkeep = typer.Typer()

_VERIFIED: Final[Columns] = {
    "state": lambda blob: blob.state,  # first: a digest leaves little room beside it
    "versions": lambda blob: blob.versions,
    "digest": lambda blob: blob.digest,
}
_COLLECTED: Final[Columns] = {"digest": lambda blob: blob.digest, "size": lambda blob: megabytes(blob.size_bytes)}
_TRANSFER: Final[Columns] = {
    "tenants": lambda done: done.tenants,
    "adapters": lambda done: done.adapters,
    "versions": lambda done: done.versions,
    "blobs": lambda done: done.blobs,
    "size": lambda done: megabytes(done.size_bytes),
}


@upkeep.command(epilog="Example: lorikeet adapters verify --json")
def verify(*, as_json: AsJson = False) -> None:
    """Read every version's files again; set aside those that are no longer what was published (exit code 2).

    They are kept in the store's folder quarantine/ until somebody has looked at them and removes them.
    """
    found = []
    with RegistrySettings().open() as registry, progress("reading") as told:
        for blob in registry.verify(Caller.operator()):
            found.append(blob)
            told(f"{len(found)} read")
    print_rows(found, _VERIFIED, as_json=as_json)
    if broken := [blob for blob in found if blob.state not in {BlobState.WHOLE, BlobState.MENDED}]:
        raise StorageError(
            f"{len(broken)} of {len(found)} are not whole; publish the same files again to mend them.",
            code="blob_damaged",
        )


@upkeep.command(epilog="Example: lorikeet adapters collect --grace-hours 168")
def collect(
    *,
    grace_hours: Annotated[
        float, typer.Option(min=0, max=MAX_GRACE_HOURS, help="How long files stay after they were published or let go.")
    ] = 168,
    as_json: AsJson = False,
) -> None:
    """Delete the files of retired and rejected versions, which no other version is made of."""
    found = []
    with RegistrySettings().open() as registry, progress("collecting") as told:
        for blob in registry.collect(Caller.operator(), grace_seconds=grace_hours * 3600):
            found.append(blob)
            told(f"{len(found)} gone")
    print_rows(found, _COLLECTED, as_json=as_json)


@upkeep.command("export", epilog="Example: lorikeet adapters export --to /backups/monday --tenant acme")
def export(
    *,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="A new or empty folder.")],
    tenant: Annotated[str | None, typer.Option(help="Only this tenant, with the bases that it needs.")] = None,
    as_json: AsJson = False,
) -> None:
    """Copy the registry as it is at this moment: a backup, taken while it goes on working.

    The folder holds the weights and the hashes of keys: keep it as safe as the registry.
    """
    with RegistrySettings().open() as registry:
        done = _followed("copying", registry.export_to(Caller.operator(), to, tenant=tenant))
    print_one(done, _TRANSFER, as_json=as_json)


@upkeep.command("import", epilog="Example: lorikeet adapters import /backups/monday")
def import_folder(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `export` made.")], *, as_json: AsJson = False
) -> None:
    """Add the tenants of an export, with all that is theirs; every file passes the gate again.

    Its keys open what they opened before: import only what nobody else could write to.
    """
    with RegistrySettings().open() as registry:
        done = _followed("judging", registry.import_from(Caller.operator(), folder))
    print_one(done, _TRANSFER, as_json=as_json)


def _followed(doing: str, steps: Iterator[Transfer]) -> Transfer:
    """The last of the steps; there is one always."""
    with progress(doing) as told:
        done = next(steps)
        for done in steps:
            told(f"{done.blobs} of {done.blob_count}, {megabytes(done.size_bytes)}")
    return done
