"""`lorikeet adapters`: the registry from a shell, as its operator. Here: adapters and their versions."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import typer

from adapters.alias_cli import aliases, shown_arms
from adapters.arguments import AdapterName, VersionName, adapter_of, all_of, reference_of, version_of
from adapters.bases import what_there_is
from adapters.callers import Caller, Scope, Tenant
from adapters.errors import InvalidError
from adapters.governance_cli import audit, grants, usage
from adapters.names import quoted
from adapters.operator_cli import bases, keys, tenants
from adapters.printing import AsJson, Columns, megabytes, print_one, print_rows, progress
from adapters.registry import Registry
from adapters.settings import RegistrySettings
from adapters.upkeep_cli import upkeep
from adapters.upload import Member, archive_members, folder_members
from adapters.values import Adapter, Kind, Version

app = typer.Typer(no_args_is_help=True)
app.add_typer(aliases)
app.add_typer(upkeep)
app.add_typer(audit)
app.add_typer(usage)
app.add_typer(tenants, name="tenants")
app.add_typer(keys, name="keys")
app.add_typer(bases, name="bases")
app.add_typer(grants, name="grants")

_ADAPTER: Final[Columns] = {
    "adapter": lambda adapter: f"{adapter.tenant}/{adapter.name}",
    "live": lambda adapter: adapter.live and shown_arms(adapter.live),
    "versions": lambda adapter: adapter.version_count,
    "aliases": lambda adapter: tuple(f"{alias.name}→{shown_arms(alias)}" for alias in adapter.aliases),
    "pinned": lambda adapter: "yes" if adapter.is_pinned else None,
    "created": lambda adapter: adapter.created_at,
}
_VERSION: Final[Columns] = {
    "version": lambda version: version.label,
    "state": lambda version: version.state,
    "kind": lambda version: version.manifest.kind,
    "rank": lambda version: version.manifest.rank,
    "size": lambda version: megabytes(version.manifest.size_bytes),
    "tags": lambda version: version.tags,
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
_TARGET: Final[Columns] = {
    "version": lambda target: target.label,
    "digest": lambda target: target.digest,
    "rank": lambda target: target.rank,
    "base": lambda target: target.base_fingerprint,
    "probed": lambda target: "yes" if target.is_probed else "at its first load",
}
_LINEAGE: Final[Columns] = {
    "version": lambda version: version.label,
    "state": lambda version: version.state,
    "made from": lambda version: version.parents,
    "tags": lambda version: version.tags,
    "note": lambda version: version.note,
}


@app.command(epilog="Example: lorikeet adapters publish acme/support ./my-adapter --promote")
def publish(
    name: AdapterName,
    upload: Annotated[Path, typer.Argument(metavar="FOLDER_OR_ARCHIVE", help="PEFT's folder, a .tar.gz or a .zip.")],
    *,
    base: Annotated[str | None, typer.Option(help="The base it was trained on. Not needed while there is one.")] = None,
    kind: Annotated[Kind, typer.Option(help="An adapter, or a whole model.")] = Kind.LORA,
    parent: Annotated[
        list[str] | None, typer.Option(help="A version of the same tenant that this was made from; repeat it.")
    ] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Make it live, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check an adapter or a model and add it as a version; the same bytes again are the same version."""
    operator = Caller.operator()
    tenant, adapter = adapter_of(name)
    with RegistrySettings().open() as registry, _members(upload, registry, kind) as members, progress("checking"):
        published = registry.versions.publish(
            operator, tenant, adapter, members, base=base or _only_base(registry), kind=kind, parents=parent or ()
        )
        if promote:
            registry.aliases.promote(operator, tenant, adapter, published.version.number)
    print_one(published, _PUBLISHED, as_json=as_json)


@app.command("list", epilog="Example: lorikeet adapters list acme")
def list_adapters(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant's.")] = None, *, as_json: AsJson = False
) -> None:
    """Adapters with their live version."""
    with RegistrySettings().open() as registry:
        names = [tenant] if tenant else [each.name for each in _tenants(registry)]
        found = [adapter for each in names for adapter in _adapters(registry, each)]
    print_rows(found, _ADAPTER, as_json=as_json)


@app.command(epilog="Example: lorikeet adapters show acme/support")
def show(name: AdapterName, *, as_json: AsJson = False) -> None:
    """An adapter's versions, the newest first."""
    tenant, adapter = adapter_of(name)
    with RegistrySettings().open() as registry:
        found = list(_versions(registry, tenant, adapter))
    print_rows(found, _VERSION, as_json=as_json)


@app.command(epilog="Example: lorikeet adapters lineage acme/support@3")
def lineage(name: VersionName, *, as_json: AsJson = False) -> None:
    """A version, what it was made from, what that was made from, and so on."""
    with RegistrySettings().open() as registry:
        found = registry.versions.lineage(Caller.operator(), *version_of(name))
    print_rows(found, _LINEAGE, as_json=as_json)


@app.command(epilog="Example: lorikeet adapters pin acme/support")
def pin(name: AdapterName, *, as_json: AsJson = False) -> None:
    """Have servers keep an adapter's live version in memory. A running one learns of it within seconds."""
    with RegistrySettings().open() as registry:
        pinned = registry.adapters.pin(Caller.operator(), *adapter_of(name))
    print_one(pinned, _ADAPTER, as_json=as_json)


@app.command(epilog="Example: lorikeet adapters unpin acme/support")
def unpin(name: AdapterName, *, as_json: AsJson = False) -> None:
    """Have servers no longer do so: it goes when room is needed, as any other."""
    with RegistrySettings().open() as registry:
        unpinned = registry.adapters.unpin(Caller.operator(), *adapter_of(name))
    print_one(unpinned, _ADAPTER, as_json=as_json)


@app.command(epilog='Example: lorikeet adapters annotate acme/support@2 --tag prod --note "passed the review"')
def annotate(
    name: VersionName,
    *,
    tag: Annotated[list[str] | None, typer.Option(help="The tags that it shall have; repeat it.")] = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="Take all its tags away.")] = False,
    note: Annotated[str | None, typer.Option(help="What people should know of it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what people should know of a version; what is left out stays as it is."""
    if no_tags and tag:
        raise typer.BadParameter("Name either --tag or --no-tags.")
    tags = [] if no_tags else tag or None
    with RegistrySettings().open() as registry:
        annotated = registry.versions.annotate(Caller.operator(), *version_of(name), tags=tags, note=note)
    print_one(annotated, _LINEAGE, as_json=as_json)


@app.command(epilog="Example: lorikeet adapters retire acme/support@2")
def retire(name: VersionName, *, as_json: AsJson = False) -> None:
    """Forbid new resolves of a version, until it is restored."""
    with RegistrySettings().open() as registry:
        retired = registry.versions.retire(Caller.operator(), *version_of(name))
    print_one(retired, _VERSION, as_json=as_json)


@app.command(epilog="Example: lorikeet adapters restore acme/support@2")
def restore(name: VersionName, *, as_json: AsJson = False) -> None:
    """Let a retired version be resolved again."""
    with RegistrySettings().open() as registry:
        restored = registry.versions.restore(Caller.operator(), *version_of(name))
    print_one(restored, _VERSION, as_json=as_json)


@app.command(epilog="Example: lorikeet adapters resolve acme/support@canary")
def resolve(
    name: Annotated[str, typer.Argument(metavar="TENANT/NAME[@N|@ALIAS]", help="As a request would name it.")],
    *,
    sticky: Annotated[
        str | None, typer.Option(metavar="KEY", help="Of a split alias, what a request with this key would get.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a request of that tenant would be answered by."""
    tenant = reference_of(name)[0]
    caller = Caller(tenant=tenant, scopes=frozenset({Scope.INFER}), name=Caller.operator().name)
    with RegistrySettings().open() as registry:
        target = registry.resolve(caller, name, sticky)
    print_one(target, _TARGET, as_json=as_json)


def _tenants(registry: Registry) -> Iterator[Tenant]:
    page = partial(registry.tenants.list, Caller.operator())
    return all_of(lambda after, limit: page(after=after, limit=limit), attrgetter("name"))


def _adapters(registry: Registry, tenant: str) -> Iterator[Adapter]:
    page = partial(registry.adapters.list, Caller.operator(), tenant)
    return all_of(lambda after, limit: page(after=after, limit=limit), attrgetter("name"))


def _versions(registry: Registry, tenant: str, adapter: str) -> Iterator[Version]:
    page = partial(registry.versions.list, Caller.operator(), tenant, adapter)
    return all_of(lambda before, limit: page(before=before, limit=limit), attrgetter("number"))


@contextmanager
def _members(upload: Path, registry: Registry, kind: Kind) -> Iterator[Iterator[Member]]:
    with ExitStack() as opened:
        try:
            if upload.is_dir():
                members = folder_members(upload)
            else:
                file = opened.enter_context(_open_plain(upload))
                limits = registry.limits
                most = limits.max_model_bytes if kind.is_model else limits.max_upload_bytes
                members = archive_members(file, max_bytes=most)
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
    known = [base for base in registry.bases.list(Caller.operator()) if base.version is None]
    if len(known) != 1:
        raise InvalidError(
            f"Name the registry's base with --base. {what_there_is(base.name for base in known)}", code="base_required"
        )
    return known[0].fingerprint
