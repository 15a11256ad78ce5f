"""What `merge`, `combine` and `quantize` make, handed to the registry with its lineage."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
