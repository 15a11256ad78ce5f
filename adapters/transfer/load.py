"""An export's folder into a registry, empty or not: its bytes through the gate, then all of its rows at once."""

from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path

from sqlalchemy import Connection

from adapters.access import Action, allow
from adapters.bases import Bases
from adapters.callers import Caller
from adapters.errors import ConflictError
from adapters.transfer.check import check
from adapters.transfer.enter import Arrival, enter
from adapters.transfer.files import Export, export_errors, read_export
from adapters.transfer.judge import Intake, Judged, identity_of
from adapters.transfer.records import Rows, Transfer
from adapters.transfer.snapshot import read_rows


def import_from(intake: Intake, caller: Caller, folder: Path) -> Iterator[Transfer]:
    """Enter what the export in `folder` holds and this registry has not: whole tenants. Platform only.

    Who imports the same twice changes nothing. A base that is known here stays as it is. Versions keep their numbers
    and states (but an adapter's that is ready is unprobed, until an engine here has loaded it), aliases their revisions
    and stacks, keys their secrets. What fails changes nothing but the store, from which `collect` takes the bytes.

    Raises:
        InvalidError: `export_incomplete`, `export_format_unknown` or `export_damaged`, with the file and line.
        RefusedError: the gate's word on a version's files.
        ConflictError: `tenant_exists`: one is here, and not the same; `key_exists`; `base_not_found`: the export is
            one tenant's, and needs a model of another's; `name_taken_by_base` or `name_taken_by_adapter`.
        StorageError: the disk or the database failed.
    """
    allow(caller, Action.OPERATE)

    # 1 all of it read, and fitting together
    export = read_export(folder)
    with export_errors():
        check(export)

    # 2 what is new here
    with intake.database.read() as connection:
        new = _new_tenants(connection, export)
    theirs = export.rows.of(new)
    identities = {identity_of(record) for record in theirs.versions if record.has_files}
    done = Transfer(len(theirs.tenants), len(theirs.adapters), len(theirs.versions), 0, len(identities), 0)

    # 3 the bytes
    known = {base.fingerprint: base for base in Bases(intake.database).list(caller)}
    judged: list[Judged] = []
    for blob in intake.judge(export, theirs.versions, known):
        judged.append(blob)
        done = done.with_blob(blob.manifest.size_bytes)
        yield done

    # 4 the rows, in one transaction
    with export_errors(), intake.database.write() as connection:
        if _new_tenants(connection, export) != new:
            raise ConflictError("Another import came in between; try again.")
        enter(connection, intake.blobs, caller, Arrival.of(export, theirs, judged))
    yield done


def _new_tenants(connection: Connection, export: Export) -> frozenset[str]:
    """The export's tenants that are not here. Raises ConflictError `tenant_exists` if one is here and not the same."""
    here = read_rows(connection, export.header.tenant)
    both = {record.name for record in here.tenants} & {record.name for record in export.rows.tenants}
    if _decisive(export.rows, both) != _decisive(here, both):
        name = next(name for name in sorted(both) if _decisive(export.rows, {name}) != _decisive(here, {name}))
        raise ConflictError(
            f"There is a tenant {name!r} already, and it is not as the export has it: an import adds tenants, and "
            "changes none.",
            code="tenant_exists",
        )
    return frozenset(record.name for record in export.rows.tenants) - both


def _decisive(rows: Rows, tenants: Container[str | None]) -> Rows:
    """What tells one state of these tenants from another: not which bytes were collected, nor what was probed where."""
    theirs = rows.of(tenants)
    same = (one.model_copy(update={"has_files": True, "state": one.entered_state}) for one in theirs.versions)
    return replace(theirs, versions=tuple(same))
