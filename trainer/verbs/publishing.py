"""What `merge`, `combine` and `quantize` make, handed to the registry with its lineage."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from adapters import Base, Caller, Kind, Registry, Version, folder_members
from trainer.errors import ArtifactError
from trainer.publish import Destination
from trainer.source import BaseFiles, Source


def require_registered(base: BaseFiles) -> Base:
    """The base as the registry knows it. Raises ArtifactError."""
    if base.base is None:
        raise ArtifactError(
            f"{base.name}: the registry does not know this base, so nothing can be published for it: enter it with "
            "`lorikeet base`."
        )
    return base.base


def publish_made(
    registry: Registry,
    caller: Caller,
    destination: Destination,
    folder: Path,
    *,
    kind: Kind,
    base: Base,
    sources: Sequence[Source],
    origin: Mapping[str, Any],
) -> Version:
    """The version. Its parents are those sources that are versions of the same tenant; the origin names all."""
    versions = [source.version for source in sources if source.version is not None]
    published = registry.versions.publish(
        caller,
        destination.tenant,
        destination.adapter,
        folder_members(folder),
        base=base.fingerprint,
        kind=kind,
        parents=tuple(version.label for version in versions if version.tenant == destination.tenant),
        origin={**origin, "base": base.name, "chat_template_digest": base.chat_template_digest},
    )
    return published.version


def print_made(out: Path, version: Version | None, lines: str, stated: dict[str, Any], *, as_json: bool) -> None:
    """The folder, the figures and the version, on stdout."""
    label = version.label if version else None
    if as_json:
        typer.echo(json.dumps({"folder": str(out), **stated, "version": label}, indent=2))
        return
    shown = Console(highlight=False, soft_wrap=True, markup=False)
    shown.print(f"{lines}\nfolder      {out}" + (f"\npublished   {label}" if label else ""))
