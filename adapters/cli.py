"""`lorikeet adapters`: the registry from a shell, as its operator."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import typer
from rich.console import Console

from adapters.errors import InvalidError, StorageError
from adapters.names import LIVE, Reference, quoted
from adapters.operator_cli import bases, keys, tenants
from adapters.printing import AsJson, Columns, print_one, print_rows
from adapters.registry import Registry
from adapters.settings import RegistrySettings
from adapters.upload import Member, archive_members, folder_members
from adapters.values import BlobState, Caller, Scope

app = typer.Typer(no_args_is_help=True)
app.add_typer(tenants, name="tenants")
app.add_typer(keys, name="keys")
app.add_typer(bases, name="bases")

AdapterName = Annotated[str, typer.Argument(metavar="TENANT/NAME", help="An adapter, such as acme/support.")]
VersionName = Annotated[str, typer.Argument(metavar="TENANT/NAME@N", help="A version, such as acme/support@3.")]
AliasOption = Annotated[str, typer.Option(help="The alias to move.")]

_ADAPTER: Final[Columns] = {
    "adapter": lambda adapter: f"{adapter.tenant}/{adapter.name}",
    "live": lambda adapter: adapter.live,
    "versions": lambda adapter: adapter.version_count,
    "aliases": lambda adapter: tuple(f"{alias.name}→{alias.version}" for alias in adapter.aliases),
    "created": lambda adapter: adapter.created_at,
}
_VERSION: Final[Columns] = {
    "version": lambda version: version.label,
    "state": lambda version: version.state,
    "rank": lambda version: version.manifest.rank,
    "alpha": lambda version: f"{version.manifest.alpha:g}",
    "size": lambda version: f"{version.manifest.size_bytes / 1e6:.1f} MB",
    "warnings": lambda version: version.warnings,
    "created": lambda version: version.created_at,
}
_PUBLISHED: Final[Columns] = {
    "version": lambda published: published.version.label,
    "": lambda published: "new" if published.is_new else "these bytes were published before",
    "state": lambda published: published.version.state,
    "digest": lambda published: published.version.manifest.digest,
    "warnings": lambda published: published.version.warnings,
}
_ALIAS: Final[Columns] = {
    "alias": lambda alias: alias.name,
    "version": lambda alias: alias.version,
    "revision": lambda alias: alias.revision,
    "moved": lambda alias: alias.moved_at,
    "by": lambda alias: alias.moved_by,
}
_TARGET: Final[Columns] = {
    "version": lambda target: target.label,
    "digest": lambda target: target.digest,
    "rank": lambda target: target.rank,
    "base": lambda target: target.base_fingerprint,
    "probed": lambda target: "yes" if target.is_probed else "at its first load",
}

_VERIFIED: Final[Columns] = {
    "digest": lambda blob: blob.digest,
    "state": lambda blob: blob.state,
    "versions": lambda blob: blob.versions,
}


@app.command(epilog="Example: lorikeet adapters publish acme/support ./my-adapter --promote")
def publish(
    name: AdapterName,
    upload: Annotated[Path, typer.Argument(metavar="FOLDER_OR_ARCHIVE", help="PEFT's folder, a .tar.gz or a .zip.")],
    *,
    base: Annotated[str | None, typer.Option(help="The base it was trained on. Not needed while there is one.")] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Make it live, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check an adapter and add it as a version; the same bytes again are the same version."""
    tenant, adapter = _adapter(name)
    with RegistrySettings().open() as registry, _members(upload, registry) as members:
        published = registry.versions.publish(
            Caller.operator(), tenant, adapter, members, base=base or _only_base(registry)
        )
        if promote:
            registry.aliases.promote(Caller.operator(), tenant, adapter, published.version.number)
    print_one(published, _PUBLISHED, as_json=as_json)


@app.command("list", epilog="Example: lorikeet adapters list acme")
def list_adapters(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant's.")] = None, *, as_json: AsJson = False
) -> None:
    """Adapters with their live version."""
    operator = Caller.operator()
    with RegistrySettings().open() as registry:
        names = [tenant] if tenant else [each.name for each in registry.tenants.list(operator)]
        found = [adapter for each in names for adapter in registry.adapters.list(operator, each)]
    print_rows(found, _ADAPTER, as_json=as_json)


@app.command(epilog="Example: lorikeet adapters show acme/support")
def show(name: AdapterName, *, as_json: AsJson = False) -> None:
    """An adapter's versions, the newest first."""
    tenant, adapter = _adapter(name)
    with RegistrySettings().open() as registry:
        found = registry.versions.list(Caller.operator(), tenant, adapter)
    print_rows(found, _VERSION, as_json=as_json)


@app.command(epilog="Example: lorikeet adapters promote acme/support@3")
def promote(name: VersionName, *, alias: AliasOption = LIVE, as_json: AsJson = False) -> None:
    """Point an alias at a version: `live`, unless another is named."""
    tenant, adapter, number = _version(name)
    with RegistrySettings().open() as registry:
        moved = registry.aliases.promote(Caller.operator(), tenant, adapter, number, alias=alias)
    print_one(moved, _ALIAS, as_json=as_json)


@app.command(epilog="Example: lorikeet adapters rollback acme/support")
def rollback(name: AdapterName, *, alias: AliasOption = LIVE, as_json: AsJson = False) -> None:
    """Point an alias at what it pointed at before its last promotion."""
    tenant, adapter = _adapter(name)
    with RegistrySettings().open() as registry:
        moved = registry.aliases.rollback(Caller.operator(), tenant, adapter, alias=alias)
    print_one(moved, _ALIAS, as_json=as_json)


@app.command(epilog="Example: lorikeet adapters retire acme/support@2")
def retire(name: VersionName, *, as_json: AsJson = False) -> None:
    """Forbid new resolves of a version, for good."""
    tenant, adapter, number = _version(name)
    with RegistrySettings().open() as registry:
        retired = registry.versions.retire(Caller.operator(), tenant, adapter, number)
    print_one(retired, _VERSION, as_json=as_json)


@app.command(epilog="Example: lorikeet adapters resolve acme/support@canary")
def resolve(
    name: Annotated[str, typer.Argument(metavar="TENANT/NAME[@N|@ALIAS]", help="As a request would name it.")],
    *,
    as_json: AsJson = False,
) -> None:
    """What a request of that tenant would be answered by."""
    tenant = _reference(name)[0]
    caller = Caller(tenant=tenant, scopes=frozenset({Scope.INFER}), name=Caller.operator().name)
    with RegistrySettings().open() as registry:
        target = registry.resolve(caller, name)
    print_one(target, _TARGET, as_json=as_json)


@app.command(epilog="Example: lorikeet adapters verify --json")
def verify(*, as_json: AsJson = False) -> None:
    """Read every version's files again; set aside those that are no longer what was published (exit code 2)."""
    found = []
    with RegistrySettings().open() as registry, Console(stderr=True).status("reading") as status:
        for blob in registry.verify(Caller.operator()):
            found.append(blob)
            status.update(f"{len(found)} read")
    print_rows(found, _VERIFIED, as_json=as_json)
    if broken := [blob for blob in found if blob.state is not BlobState.WHOLE]:
        raise StorageError(
            f"{len(broken)} of {len(found)} are not whole; publish the same files again to mend them.",
            code="blob_damaged",
        )


def _reference(text: str) -> tuple[str, Reference]:
    """The tenant, which a shell has to name, and the rest."""
    reference = Reference.parse(text)
    if reference.tenant is None:
        raise InvalidError(f"Whose is {quoted(text)}? Write TENANT/NAME.", code="invalid_adapter_name")
    return reference.tenant, reference


def _adapter(text: str) -> tuple[str, str]:
    tenant, reference = _reference(text)
    if "@" in text:
        raise InvalidError(f"{quoted(text)} names a version; name the adapter.", code="invalid_adapter_name")
    return tenant, reference.adapter


def _version(text: str) -> tuple[str, str, int]:
    tenant, reference = _reference(text)
    if not isinstance(reference.selector, int):
        raise InvalidError(f"Which version of {quoted(text)}? Write TENANT/NAME@N.", code="invalid_adapter_name")
    return tenant, reference.adapter, reference.selector


@contextmanager
def _members(upload: Path, registry: Registry) -> Iterator[Iterator[Member]]:
    with ExitStack() as opened:
        try:
            if upload.is_dir():
                members = folder_members(upload)
            else:
                file = opened.enter_context(_open_plain(upload))
                members = archive_members(file, max_bytes=registry.limits.max_upload_bytes)
        except OSError as error:
            why = error.strerror or "it is no plain file"
            raise InvalidError(f"{quoted(str(upload))} can't be read: {why}.", code="file_unreadable") from error
        yield members


def _open_plain(path: Path) -> BinaryIO:
    # Before it is opened: a FIFO would wait for its writer.
    if path.exists() and not path.is_file():
        raise InvalidError(f"{quoted(str(path))} is neither a folder nor a file.", code="file_unreadable")
    return path.open("rb")


def _only_base(registry: Registry) -> str:
    known = registry.bases.list(Caller.operator())
    if len(known) != 1:
        names = ", ".join(base.name for base in known) or "none: prepare one with `lorikeet base`"
        raise InvalidError(f"Name the base with --base. The registry has: {names}.", code="base_required")
    return known[0].fingerprint
