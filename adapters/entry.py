"""The row that makes bytes a version: in one transaction with the tenant's limits, the adapter's first row, the audit.

What may refuse a version is asked twice: before its bytes come to the store, so that a refusal leaves none there, and
again when it is entered, for much may have happened meanwhile.

Invariant: when a version becomes servable, its blob's row is there and locked, and its bytes are there as well: they
can't be on their way out. The row alone proves nothing: whoever put the bytes, or took them, may have died over it.
Invariant: whoever changes a version's state locks, in this order and no other, the tenant's row, the adapter's, the
blob's, the version's. None of them waits for one who waits for it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from adapters.bases import add_model, claim_adapter_name
from adapters.changes import Change, Done, find_answer
from adapters.database import insert_into
from adapters.errors import ConflictError
from adapters.gate import Admitted
from adapters.lookups import as_version, find_tenant, version_subject
from adapters.manifests import dump_manifest
from adapters.names import quoted
from adapters.quotas import require_place, require_room
from adapters.schema import ADAPTERS, BLOBS, TENANTS, VERSIONS
from adapters.storage import Blobs
from adapters.values import Base, Kind, Published, VersionState


@dataclass(frozen=True, slots=True)
class ProbeVerdict:
    """What an engine found when it loaded an adapter and asked it something."""

    is_accepted: bool
    reason: str = ""
    """Why not, as a sentence that may be shown to the publisher."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be entered."""

    tenant: str
    adapter: str
    admitted: Admitted
    base: Base
    """The base it was judged against."""
    verdict: ProbeVerdict | None
    stated: Mapping[str, Any]
    """The publisher's own words: `origin` and `parents`, as they are stored."""

    @property
    def asked(self) -> dict[str, Any]:
        """What tells one publish from another. The version keeps the origin; here its digest does."""
        origin = json.dumps(self.stated["origin"], sort_keys=True, separators=(",", ":"))
        return {
            "digest": self.admitted.manifest.digest,
            "base": self.base.fingerprint,
            "parents": self.stated["parents"],
            "origin_digest": f"sha256:{hashlib.sha256(origin.encode()).hexdigest()}",
        }


def announce(what: Change, entry: Entry, connection: Connection) -> Published | None:
    """Say that the version's bytes are about to be put, if they may be; or give the result that `what` had before.

    Raises:
        InvalidError, ConflictError: what `changes` says of the call's idempotency key.
        ForbiddenError: `quota_exceeded`.
        ConflictError: `name_taken_by_base`; `kind_mismatch`.
    """
    answer = find_answer(connection, what, Published)
    if answer is None:
        manifest = entry.admitted.manifest
        tenant_id = find_tenant(connection, entry.tenant, for_update=True)
        adapter_id = _find_adapter(connection, entry)
        _require_room(connection, tenant_id, entry, _find_same(connection, adapter_id, manifest.digest))
        touch(connection, manifest.digest, manifest.size_bytes)
    return answer


def enter(what: Change, entry: Entry, blobs: Blobs, connection: Connection) -> Done[Published]:
    """The version's row, or the one that has these bytes already.

    Raises:
        ForbiddenError: `quota_exceeded`.
        ConflictError: `name_taken_by_base`; `kind_mismatch`; `blob_collected`: the bytes were put too long ago.
    """
    manifest = entry.admitted.manifest
    tenant_id = find_tenant(connection, entry.tenant, for_update=True)
    adapter_id = _find_adapter(connection, entry) or _add_adapter(connection, tenant_id, entry)
    require_blob(connection, blobs, manifest.digest)
    existing = _find_same(connection, adapter_id, manifest.digest)
    if existing is not None:
        return _probed_again(connection, tenant_id, entry, existing)

    _require_room(connection, tenant_id, entry, None)
    of_adapter = VERSIONS.c.adapter_id == adapter_id
    newest = connection.execute(select(func.max(VERSIONS.c.number)).where(of_adapter)).scalar() or 0
    is_ready = manifest.kind.is_model or entry.verdict is not None
    row = connection.execute(
        insert(VERSIONS)
        .values(
            adapter_id=adapter_id,
            number=newest + 1,
            digest=manifest.digest,
            base_fingerprint=manifest.base_fingerprint,
            model_fingerprint=manifest.model_fingerprint,
            state=(VersionState.READY if is_ready else VersionState.UNPROBED).value,
            manifest=dump_manifest(manifest),
            warnings=_merged(entry.admitted.warnings, entry.verdict),
            created_at=datetime.now(UTC),
            created_by=what.caller.signature,
            size_bytes=manifest.size_bytes,
            **entry.stated,
        )
        .returning(VERSIONS)
    ).one()
    version = as_version(row, entry.tenant, entry.adapter)
    if entry.admitted.model is not None:
        model = replace(entry.admitted.model, name=version.label)
        add_model(connection, replace(model, size_bytes=manifest.size_bytes, created_at=version.created_at))
    subject = version_subject(entry.adapter, version.number)
    return Done(Published(version, is_new=True), subject=subject, detail={"is_new": True})


def touch(connection: Connection, digest: str, size_bytes: int) -> None:
    """Say that a blob is about to be put, or was just let go: a grace period for `collect` begins."""
    now = datetime.now(UTC)
    row = insert_into(connection, BLOBS).values(digest=digest, size_bytes=size_bytes, touched_at=now)
    connection.execute(row.on_conflict_do_update(index_elements=[BLOBS.c.digest], set_={"touched_at": now}))


def require_blob(connection: Connection, blobs: Blobs, digest: str) -> None:
    """Lock a blob's row, and see that its bytes are there. Raises ConflictError `blob_collected`.

    Bytes without a row are not enough either: who took the row away may have taken a part of what came meanwhile.
    """
    row = connection.execute(select(BLOBS.c.digest).where(BLOBS.c.digest == digest).with_for_update()).first()
    if row is None or not blobs.is_stored(digest):
        raise ConflictError("The version's bytes were collected: publish the same files again.", code="blob_collected")


def require_kind(connection: Connection, tenant: str, adapter: str, kind: Kind) -> None:
    """Raise ConflictError `kind_mismatch` if the adapter's versions are whole models and this is none, or vice versa.

    No server could answer for both: it starts on a model, and loads an adapter.
    """
    newest = connection.execute(
        select(VERSIONS.c.manifest)
        .join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id)
        .join(TENANTS, TENANTS.c.id == ADAPTERS.c.tenant_id)
        .where(TENANTS.c.name == tenant, ADAPTERS.c.name == adapter)
        .order_by(VERSIONS.c.number.desc())
        .limit(1)
    ).scalar()
    if newest is not None and Kind(newest["kind"]).is_model is not kind.is_model:
        theirs, other = ("whole models", "an adapter") if not kind.is_model else ("adapters", "a whole model")
        raise ConflictError(
            f"The versions of {quoted(adapter)} are {theirs}: publish {other} under another name.", code="kind_mismatch"
        )


def set_probed(connection: Connection, row: Row[Any], verdict: ProbeVerdict) -> Row[Any]:
    """Write an engine's verdict on the version in `row`; the bytes of a rejected one are let go."""
    if not verdict.is_accepted:
        touch(connection, row.digest, row.size_bytes)
    state = VersionState.READY if verdict.is_accepted else VersionState.REJECTED
    columns = {"state": state.value, "warnings": _merged(row.warnings, verdict)}
    probed = update(VERSIONS).where(VERSIONS.c.id == row.id).values(columns).returning(VERSIONS)
    return connection.execute(probed).one()


def _probed_again(connection: Connection, tenant_id: int, entry: Entry, existing: Row[Any]) -> Done[Published]:
    """The version that has these bytes already. An engine's word settles one that is unprobed or rejected."""
    is_changed = entry.verdict is not None and existing.state in {VersionState.UNPROBED, VersionState.REJECTED}
    if entry.verdict is not None and is_changed:
        _require_room(connection, tenant_id, entry, existing)
        existing = set_probed(connection, existing, entry.verdict)
    version = as_version(existing, entry.tenant, entry.adapter)
    subject = version_subject(entry.adapter, version.number)
    return Done(Published(version, is_new=False), is_changed=is_changed, subject=subject, detail={"is_new": False})


def _find_adapter(connection: Connection, entry: Entry) -> int | None:
    """The adapter's id, its row locked; None if this is its first version, and may be. The tenant's row is locked.

    That lock is the one on the name: of two first publishes at once, one makes the adapter and the other finds it.
    """
    require_kind(connection, entry.tenant, entry.adapter, entry.admitted.manifest.kind)
    found: int | None = connection.execute(
        select(ADAPTERS.c.id)
        .join(TENANTS, TENANTS.c.id == ADAPTERS.c.tenant_id)
        .where(TENANTS.c.name == entry.tenant, ADAPTERS.c.name == entry.adapter)
        .with_for_update(of=ADAPTERS)
    ).scalar()
    if found is None:
        claim_adapter_name(connection, entry.tenant, entry.adapter)
        require_place(connection, entry.tenant, entry.adapter)
    return found


def _add_adapter(connection: Connection, tenant_id: int, entry: Entry) -> int:
    row = {"tenant_id": tenant_id, "name": entry.adapter, "created_at": datetime.now(UTC)}
    return int(connection.execute(insert(ADAPTERS).values(row).returning(ADAPTERS.c.id)).scalar_one())


def _find_same(connection: Connection, adapter_id: int | None, digest: str) -> Row[Any] | None:
    """The adapter's version with these bytes."""
    is_it = (VERSIONS.c.adapter_id == adapter_id) & (VERSIONS.c.digest == digest)
    return connection.execute(select(VERSIONS).where(is_it)).one_or_none()


def _require_room(connection: Connection, tenant_id: int, entry: Entry, existing: Row[Any] | None) -> None:
    """For bytes that the tenant can be served already, there is room."""
    if existing is None or not VersionState(existing.state).is_servable:
        manifest = entry.admitted.manifest
        require_room(connection, tenant_id, manifest.digest, manifest.size_bytes)


def _merged(warnings: Iterable[str], verdict: ProbeVerdict | None) -> list[str]:
    """Each warning once, in the order in which they came."""
    return list(dict.fromkeys([*warnings, *(verdict.warnings if verdict else ())]))
