"""What an upload is judged with: the base that it is for, and this engine's probe if the engine can load it."""

from adapters import Base, Caller, ConflictError, Kind, NotFoundError, Probe
from server.metrics import Labels
from server.parts import Parts
from server.probe import upload_probe


async def base_of(parts: Parts, caller: Caller, reference: str | None) -> Base:
    """The base that is meant; None means the one that is served. Raises NotFoundError `base_not_found`."""
    find = parts.registry.bases.find
    if reference is not None:
        return await parts.threads.read(find, caller, reference)
    try:
        await parts.threads.read(find, caller, parts.base.fingerprint)
    except NotFoundError as error:  # and its fingerprint is nothing for the caller to know
        raise NotFoundError(
            "This server has no base for you: say which one is meant.", code="base_not_found"
        ) from error
    return parts.base


async def probe_of(parts: Parts, tenant: str, adapter: str, base: Base, kind: Kind, *, promote: bool) -> Probe | None:
    """None for what this engine can't judge: a model, or an adapter of another base. Whoever serves it probes it.

    The base that the one served was quantised from is another one, though its adapters may be promoted.

    Raises:
        ConflictError: `base_mismatch`: such an adapter is to be promoted.
    """
    if kind.is_model:
        return None
    may_load = await parts.leases.may_load(tenant, base.fingerprint)
    if may_load and base.fingerprint == parts.base.fingerprint:
        return upload_probe(
            parts.engine, parts.residency, parts.turns, parts.in_flight, Labels(tenant, adapter, "probe")
        )
    if promote and not may_load:
        raise ConflictError("An adapter of another base than the one served can't be promoted.", code="base_mismatch")
    return None
