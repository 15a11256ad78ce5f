"""Immutable weights with a number. Publishing is idempotent: for one adapter, the same bytes are the same version."""

import builtins
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from adapters.access import Action, allow
from adapters.bases import Bases, require_no_base_called
from adapters.database import Database
from adapters.errors import ConflictError, InvalidError
from adapters.gate import Admitted, admit
from adapters.limits import MAX_ORIGIN_BYTES, Limits
from adapters.lookups import as_version, find_adapter, find_tenant, find_version, select_aliases
from adapters.manifests import dump_manifest
from adapters.names import quoted, require_adapter_name
from adapters.refusals import Refusal, refusal
from adapters.schema import ADAPTERS, PROMOTIONS, VERSIONS
from adapters.store import Store, disk_errors
from adapters.upload import Member
from adapters.values import Caller, Manifest, Published, Version, VersionState


@dataclass(frozen=True, slots=True)
class ProbeVerdict:
    """What an engine found when it loaded an adapter and asked it something."""

    is_accepted: bool
    reason: str = ""
    """Why not, as a sentence that may be shown to the publisher."""
    warnings: tuple[str, ...] = ()


Probe = Callable[[Path, Manifest], ProbeVerdict]
"""Loads the adapter in a folder into an engine and asks it something."""


class Versions:
    """`registry.versions`."""

    def __init__(self, database: Database, store: Store, bases: Bases, limits: Limits) -> None:
        self._database = database
        self._store = store
        self._bases = bases
        self._limits = limits

    def publish(
        self,
        caller: Caller,
        tenant: str,
        adapter: str,
        members: Iterable[Member],
        *,
        base: str,
        origin: Mapping[str, Any] | None = None,
        probe: Probe | None = None,
    ) -> Published:
        """Add a version of `adapter`, which begins to exist with its first one. A refusal leaves nothing behind.

        `base` is the reference of a registered base, best its fingerprint. Without a `probe`, the version is unprobed.

        Raises:
            RefusedError: the gate's word, or `probe_failed`.
            InvalidError: `invalid_adapter_name` or `invalid_origin`.
            NotFoundError: `tenant_not_found` or `base_not_found`.
            ConflictError: `name_taken_by_base`.
            StorageError: the disk or the database failed.
        """
        # 1 may this be published at all
        allow(caller, Action.MANAGE, tenant)
        require_adapter_name(adapter)
        stated = _as_json(origin or {})
        with self._database.read() as connection:
            find_tenant(connection, tenant)
            require_no_base_called(connection, tenant, adapter)
        known_base = self._bases.find(base)

        with self._store.stage() as staged:
            # 2 the gate
            with disk_errors():
                admitted = admit(members, staged, known_base, self._limits)

            # 3 the engine
            verdict = probe(admitted.folder, admitted.manifest) if probe else None
            if verdict is not None and not verdict.is_accepted:
                raise refusal(Refusal.PROBE_FAILED, f"The engine refuses the adapter: {verdict.reason}")

            # 4 the bytes, then the row that makes them a version
            self._store.commit(admitted.folder, admitted.manifest)
        with self._database.write() as connection:
            return _enter(connection, caller, (tenant, adapter), admitted, verdict, stated)

    def get(self, caller: Caller, tenant: str, adapter: str, number: int) -> Version:
        """One version. Raises NotFoundError `adapter_not_found` or `version_not_found`."""
        allow(caller, Action.MANAGE, tenant)
        with self._database.read() as connection:
            row = find_version(connection, find_adapter(connection, tenant, adapter), number)
        return as_version(row, tenant, adapter)

    def retire(self, caller: Caller, tenant: str, adapter: str, number: int) -> Version:
        """Forbid new resolves, for good. What is retired already stays so.

        Raises:
            NotFoundError: `adapter_not_found` or `version_not_found`.
            ConflictError: `version_in_use`, while an alias points at it.
        """
        allow(caller, Action.MANAGE, tenant)
        with self._database.write() as connection:
            adapter_id = find_adapter(connection, tenant, adapter, for_update=True)
            version = find_version(connection, adapter_id, number)
            pointing = connection.execute(select_aliases().where(PROMOTIONS.c.version_id == version.id)).all()
            if pointing:
                names = ", ".join(sorted(alias.name for alias in pointing))
                raise ConflictError(
                    f"Version {number} is what {names} points at: promote another one first.", code="version_in_use"
                )
            connection.execute(
                update(VERSIONS).where(VERSIONS.c.id == version.id).values(state=VersionState.RETIRED.value)
            )
            return as_version(find_version(connection, adapter_id, number), tenant, adapter)

    def record_probe(self, version_id: int, verdict: ProbeVerdict) -> None:
        """The server's word on an unprobed version after its first load: ready or rejected. Others stay as they are."""
        with self._database.write() as connection:
            is_it = (VERSIONS.c.id == version_id) & (VERSIONS.c.state == VersionState.UNPROBED.value)
            row = connection.execute(select(VERSIONS).where(is_it).with_for_update()).one_or_none()
            if row is not None:
                _set_probed(connection, row, verdict)

    def list(self, caller: Caller, tenant: str, adapter: str) -> builtins.list[Version]:
        """Every version, the newest first."""
        allow(caller, Action.MANAGE, tenant)
        with self._database.read() as connection:
            adapter_id = find_adapter(connection, tenant, adapter)
            rows = connection.execute(
                select(VERSIONS).where(VERSIONS.c.adapter_id == adapter_id).order_by(VERSIONS.c.number.desc())
            )
            return [as_version(row, tenant, adapter) for row in rows]


def _enter(
    connection: Connection,
    caller: Caller,
    name: tuple[str, str],
    admitted: Admitted,
    verdict: ProbeVerdict | None,
    origin: Mapping[str, Any],
) -> Published:
    """The version's row, or the one that has these bytes already."""
    adapter_id = _find_or_add_adapter(connection, *name)
    of_adapter = VERSIONS.c.adapter_id == adapter_id
    # Locked, or one that is being retired meanwhile would become ready again.
    same = select(VERSIONS).where(of_adapter, VERSIONS.c.digest == admitted.manifest.digest).with_for_update()
    existing = connection.execute(same).one_or_none()
    if existing is not None:
        if verdict is not None and existing.state in {VersionState.UNPROBED, VersionState.REJECTED}:
            _set_probed(connection, existing, verdict)
            existing = connection.execute(same).one()
        return Published(as_version(existing, *name), is_new=False)

    newest = connection.execute(select(func.max(VERSIONS.c.number)).where(of_adapter)).scalar() or 0
    row = connection.execute(
        insert(VERSIONS)
        .values(
            adapter_id=adapter_id,
            number=newest + 1,
            digest=admitted.manifest.digest,
            base_fingerprint=admitted.manifest.base_fingerprint,
            state=(VersionState.READY if verdict else VersionState.UNPROBED).value,
            manifest=dump_manifest(admitted.manifest),
            warnings=_merged(admitted.warnings, verdict),
            origin=origin,
            created_at=datetime.now(UTC),
            created_by=caller.name,
        )
        .returning(VERSIONS)
    ).one()
    return Published(as_version(row, *name), is_new=True)


def _find_or_add_adapter(connection: Connection, tenant: str, adapter: str) -> int:
    # The tenant's row is the lock: of two first publishes at once, one makes the adapter and the other finds it.
    tenant_id = find_tenant(connection, tenant, for_update=True)
    found = connection.execute(
        select(ADAPTERS.c.id).where(ADAPTERS.c.tenant_id == tenant_id, ADAPTERS.c.name == adapter)
    ).scalar()
    if found is None:
        require_no_base_called(connection, tenant, adapter)
        found = connection.execute(
            insert(ADAPTERS)
            .values(tenant_id=tenant_id, name=adapter, created_at=datetime.now(UTC))
            .returning(ADAPTERS.c.id)
        ).scalar_one()
    return int(found)


def _set_probed(connection: Connection, row: Row[Any], verdict: ProbeVerdict) -> None:
    state = VersionState.READY if verdict.is_accepted else VersionState.REJECTED
    connection.execute(
        update(VERSIONS)
        .where(VERSIONS.c.id == row.id)
        .values(state=state.value, warnings=_merged(row.warnings, verdict))
    )


def _merged(warnings: Iterable[str], verdict: ProbeVerdict | None) -> list[str]:
    """Each warning once, in the order in which they came."""
    return list(dict.fromkeys([*warnings, *(verdict.warnings if verdict else ())]))


def _as_json(origin: Mapping[str, Any]) -> dict[str, Any]:
    try:
        text = json.dumps(dict(origin), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidError(f"The origin can't be kept as JSON: {quoted(str(error))}.", code="invalid_origin") from error
    if len(text) > MAX_ORIGIN_BYTES:
        raise InvalidError(f"The origin has more than {MAX_ORIGIN_BYTES} bytes of JSON.", code="invalid_origin")
    stored: dict[str, Any] = json.loads(text)
    return stored
