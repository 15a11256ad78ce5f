"""Immutable weights with a number. Publishing is idempotent: for one adapter, the same bytes are the same version."""

import builtins
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import select

from adapters import transitions
from adapters.access import Action, allow
from adapters.bases import Bases, require_no_base_called
from adapters.callers import Caller
from adapters.changes import Change, change
from adapters.database import Database
from adapters.entry import Entry, ProbeVerdict, announce, enter, require_kind, touch
from adapters.errors import ConflictError
from adapters.gate import Admitted, admit, admit_model
from adapters.limits import Limits
from adapters.lookups import (
    DEFAULT_PAGE,
    as_bound,
    as_version,
    find_adapter,
    find_tenant,
    find_version,
    require_page,
    version_subject,
)
from adapters.names import require_adapter_name
from adapters.quotas import require_place
from adapters.refusals import Refusal, refusal
from adapters.schema import VERSIONS
from adapters.stated import require_note, require_origin, require_parents, require_tags
from adapters.storage import Blobs, Staging, disk_errors
from adapters.upload import Member
from adapters.values import Base, Kind, Manifest, Published, Version

Probe = Callable[[Path, Manifest], ProbeVerdict]
"""Loads the adapter in a folder into an engine and asks it something."""


class Versions:
    """`registry.versions`."""

    def __init__(self, database: Database, blobs: Blobs, staging: Staging, bases: Bases, limits: Limits) -> None:
        self._database = database
        self._blobs = blobs
        self._staging = staging
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
        kind: Kind = Kind.LORA,
        origin: Mapping[str, Any] | None = None,
        parents: Sequence[str] = (),
        probe: Probe | None = None,
    ) -> Published:
        """Add a version of `adapter`, which begins to exist with its first one.

        A refusal leaves nothing behind, with one exception: where it comes of what another call did at that very moment
        (it took the last room, or the name), or of a failure, the bytes may stay until `collect` takes them.

        `base` is the reference of a registered base, best its fingerprint: the one that an adapter belongs to, or that
        a `merged` or `full` model was made from. Without a `probe`, an adapter is unprobed; models are never probed.
        `parents` are versions of the tenant, `support@2`, that this one was made from. An adapter's versions are all
        `lora`, or none is.

        Raises:
            RefusedError: the gate's word, or `probe_failed`.
            InvalidError: `invalid_adapter_name`, `invalid_origin` or `invalid_parent`.
            NotFoundError: `tenant_not_found`, `base_not_found` or, for a parent, `version_not_found`.
            ForbiddenError: `quota_exceeded`.
            ConflictError: `name_taken_by_base`; `kind_mismatch`; `blob_collected`.
            StorageError: the disk or the database failed.
        """
        # 1 may this be published at all
        allow(caller, Action.MANAGE, tenant)
        require_adapter_name(adapter)
        stated: dict[str, Any] = {"origin": require_origin(origin or {})}
        with self._database.read() as connection:
            find_tenant(connection, tenant)
            require_no_base_called(connection, tenant, adapter)
            require_place(connection, tenant, adapter)
            require_kind(connection, tenant, adapter, kind)
            stated["parents"] = require_parents(connection, tenant, parents)
        known_base = self._bases.find(caller, base)

        with self._staging.folder() as staged:
            # 2 the gate
            with disk_errors():
                admitted = self._admit(members, staged, known_base, kind)

            # 3 the engine
            verdict = probe(admitted.folder, admitted.manifest) if probe and not kind.is_model else None
            if verdict is not None and not verdict.is_accepted:
                raise refusal(Refusal.PROBE_FAILED, f"The engine refuses the adapter: {verdict.reason}")

            # 4 the bytes, if nothing speaks against them, then the row that makes them a version
            entry = Entry(tenant, adapter, admitted, known_base, verdict, stated)
            what = Change(caller, "version.publish", tenant, adapter, entry.asked)
            with self._database.write() as connection:
                answer = announce(what, entry, connection)
            if answer is not None:
                return answer
            self._blobs.put(admitted.folder, admitted.manifest)
        return self._enter(what, entry)

    def check(self, caller: Caller, members: Iterable[Member], *, base: str, kind: Kind = Kind.LORA) -> Manifest:
        """What the gate makes of these files: the manifest that they would have. Nothing is published or kept.

        Raises:
            RefusedError: the gate's word.
            NotFoundError: `base_not_found`.
            StorageError: the disk failed.
        """
        allow(caller, Action.MANAGE)
        known_base = self._bases.find(caller, base)
        with self._staging.folder() as staged, disk_errors():
            return self._admit(members, staged, known_base, kind).manifest

    def get(self, caller: Caller, tenant: str, adapter: str, number: int) -> Version:
        """One version. Raises NotFoundError `adapter_not_found` or `version_not_found`."""
        allow(caller, Action.MANAGE, tenant)
        with self._database.read() as connection:
            row = find_version(connection, find_adapter(connection, tenant, adapter), number)
        return as_version(row, tenant, adapter)

    def list(
        self, caller: Caller, tenant: str, adapter: str, *, before: int | None = None, limit: int = DEFAULT_PAGE
    ) -> builtins.list[Version]:
        """The newest first: at most `limit`, those with numbers below `before`.

        Raises:
            NotFoundError: `adapter_not_found`.
            InvalidError: `invalid_limit`.
        """
        allow(caller, Action.MANAGE, tenant)
        require_page(limit)
        with self._database.read() as connection:
            page = select(VERSIONS).where(VERSIONS.c.adapter_id == find_adapter(connection, tenant, adapter))
            if before is not None:
                page = page.where(VERSIONS.c.number < as_bound(before))
            rows = connection.execute(page.order_by(VERSIONS.c.number.desc()).limit(limit))
            return [as_version(row, tenant, adapter) for row in rows]

    def lineage(self, caller: Caller, tenant: str, adapter: str, number: int) -> builtins.list[Version]:
        """A version and all that it was made from, each once: itself, its parents, theirs.

        Raises:
            NotFoundError: `adapter_not_found` or `version_not_found`.
        """
        line = [self.get(caller, tenant, adapter, number)]
        seen = {line[0].label}
        for version in line:  # grows while it is walked; ends, for parents are older than their children
            for parent in version.parents:
                if parent not in seen:
                    seen.add(parent)
                    name, _, of = parent.rpartition("@")
                    line.append(self.get(caller, tenant, name.rpartition("/")[2], int(of)))
        return line

    def retire(self, caller: Caller, tenant: str, adapter: str, number: int) -> Version:
        """Forbid new resolves, until it is restored. What is retired already stays so.

        Raises:
            NotFoundError: `adapter_not_found` or `version_not_found`.
            ConflictError: `version_in_use`, while an alias points at it.
        """
        allow(caller, Action.MANAGE, tenant)
        what = Change(caller, "version.retire", tenant, version_subject(adapter, number))
        return change(self._database, what, partial(transitions.retire, tenant, adapter, number), Version)

    def restore(self, caller: Caller, tenant: str, adapter: str, number: int) -> Version:
        """Let a retired version be resolved again; an adapter is probed anew. One that is not retired stays as it is.

        Its bytes are not read: whoever loads it reads them to the last.

        Raises:
            NotFoundError: `adapter_not_found` or `version_not_found`.
            ForbiddenError: `quota_exceeded`.
            ConflictError: `blob_collected`: its bytes are gone; publish the same files, then restore it.
            StorageError: the disk, the store or the database failed.
        """
        allow(caller, Action.MANAGE, tenant)
        what = Change(caller, "version.restore", tenant, version_subject(adapter, number))
        work = partial(transitions.restore, tenant, adapter, number, self._blobs)
        return change(self._database, what, work, Version)

    def annotate(
        self,
        caller: Caller,
        tenant: str,
        adapter: str,
        number: int,
        *,
        tags: Sequence[str] | None = None,
        note: str | None = None,
    ) -> Version:
        """Say anew what people should know of a version; None leaves it as it is.

        Raises:
            NotFoundError: `adapter_not_found` or `version_not_found`.
            InvalidError: `invalid_tag` or `invalid_note`.
        """
        allow(caller, Action.MANAGE, tenant)
        said: dict[str, Any] = {} if tags is None else {"tags": require_tags(tags)}
        said |= {} if note is None else {"note": require_note(note)}
        what = Change(caller, "version.annotate", tenant, version_subject(adapter, number), said)
        return change(self._database, what, partial(transitions.annotate, tenant, adapter, number, said), Version)

    def record_probe(self, caller: Caller, version_id: int, verdict: ProbeVerdict) -> Version:
        """The server's word on an unprobed version after its first load: ready or rejected. Others stay as they are.

        What is returned is the version as it is now, which another server may have settled otherwise: obey that.

        Raises:
            NotFoundError: `version_not_found`.
        """
        allow(caller, Action.OPERATE)
        with self._database.write() as connection:
            return transitions.record_probe(caller, version_id, verdict, connection)

    def _enter(self, what: Change, entry: Entry) -> Published:
        try:
            return change(self._database, what, partial(enter, what, entry, self._blobs), Published)
        except ConflictError as error:
            if error.code == "blob_collected":
                # `collect` forgot the bytes before they had come: now it finds what came after it.
                manifest = entry.admitted.manifest
                with self._database.write() as connection:
                    touch(connection, manifest.digest, manifest.size_bytes)
            raise

    def _admit(self, members: Iterable[Member], staged: Path, base: Base, kind: Kind) -> Admitted:
        if kind.is_model:
            return admit_model(members, staged, base, self._limits, kind=kind)
        return admit(members, staged, base, self._limits)
