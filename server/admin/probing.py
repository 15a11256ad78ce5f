"""What an upload is judged with: the base that it is for, and this engine's probe if the engine can load it."""

from adapters import Base, Caller, ConflictError, Kind, Probe
from server.metrics import Labels
from server.parts import Parts
from server.probe import upload_probe


async def base_of(parts: Parts, caller: Caller, reference: str | None) -> Base:
    """The base that is meant; None means the one that is served. Raises NotFoundError `base_not_found`."""
    if reference is None:
        return parts.base
    return await parts.threads.read(parts.registry.bases.find, caller, reference)


def probe_of(parts: Parts, tenant: str, adapter: str, base: Base, kind: Kind, *, promote: bool) -> Probe | None:
    """None for what this engine can't load: a model, or an adapter of another base. Whoever serves it probes it.

    Raises:
        ConflictError: `base_mismatch`: such an adapter is to be promoted.
    """
    if not kind.is_model and base.fingerprint == parts.base.fingerprint:
        return upload_probe(parts.engine, parts.residency, Labels(tenant, adapter, "probe"))
    if promote and not kind.is_model:
        raise ConflictError("An adapter of another base than the one served can't be promoted.", code="base_mismatch")
    return None
