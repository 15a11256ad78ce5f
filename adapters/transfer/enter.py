"""An export's records as rows, under ids of their own, in the caller's transaction."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

from sqlalchemy import Connection, Table, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from adapters.bases import claim_adapter_name, claim_base_name, columns_of
from adapters.callers import Caller
from adapters.changes import Change, note
from adapters.entry import require_blob
from adapters.errors import ConflictError, InvalidError
from adapters.manifests import dump_manifest
from adapters.schema import ADAPTERS, ALIASES, API_KEYS, AUDIT, BASES, GRANTS, PROMOTIONS, TENANTS, USAGE, VERSIONS
from adapters.storage import Blobs
from adapters.transfer.files import Export, damaged
from adapters.transfer.judge import Identity, Judged, identity_of, model_missing
from adapters.transfer.records import AuditRecord, BaseRecord, Record, Rows, VersionRecord
from adapters.values import Base, Manifest

_CHUNK: Final = 1000
_OF_ADAPTER: Final = frozenset({"tenant", "adapter"})


@dataclass(frozen=True, slots=True)
class Arrival:
    """What is to be entered."""

    export: Export
    rows: Rows
    """Those of the new tenants."""
    manifests: Mapping[Identity, Manifest]
    """As the gate derived them."""
    models: Mapping[str, Base]
    """The models that passed the gate, as bases, by their fingerprints."""

    @classmethod
    def of(cls, export: Export, rows: Rows, judged: Iterable[Judged]) -> "Arrival":
        """With what the gate said of the blobs."""
        passed = list(judged)
        manifests = {identity_of(one.record): one.manifest for one in passed}
        return cls(export, rows, manifests, {one.model.fingerprint: one.model for one in passed if one.model})


def enter(connection: Connection, blobs: Blobs, caller: Caller, arrival: Arrival) -> None:
    """All rows, and if there were any, one of the audit that says so.

    Raises:
        InvalidError: `export_damaged`: a line of the usage is there twice.
        ConflictError: `key_exists`, `base_not_found`, `name_taken_by_base`, `name_taken_by_adapter`; `blob_collected`.
    """
    rows, whose = arrival.rows, arrival.export.header.tenant
    bases, models = _new_bases(connection, arrival)
    tenants = _enter_tenants(connection, rows)
    keys = _enter_keys(connection, arrival, tenants)
    adapters = _enter_adapters(connection, rows, tenants)
    for digest in sorted({record.files.digest for record in rows.versions if record.has_files}):
        require_blob(connection, blobs, digest)
    versions = _enter_versions(connection, arrival, models, adapters)
    _enter_promotions(connection, rows, adapters, versions)
    _insert(connection, GRANTS, [_of_adapter(record, adapters) for record in rows.grants])
    _enter_usage(connection, arrival.export, tenants)
    audited = _enter_audit(connection, arrival.export.audit(), tenants)
    if tenants or bases or keys or audited:
        header = arrival.export.header
        counts = {"adapters": len(adapters), "versions": len(versions), "bases": bases + len(models), "keys": keys}
        asked = {"made_at": header.made_at.isoformat(), "tenants": sorted(tenants), **counts}
        action, subject = ("registry.import", "registry") if whose is None else ("tenant.import", whose)
        note(connection, Change(caller, action, whose, subject, asked))


def _new_bases(connection: Connection, arrival: Arrival) -> tuple[int, list[BaseRecord]]:
    """Enter the bases that are not known here, and say how many; and the models among them, which come later."""
    known = set(connection.execute(select(BASES.c.fingerprint)).scalars())
    new = [record for record in arrival.export.rows.bases if record.fingerprint not in known]
    plain = [record for record in new if record.version is None]
    for record in plain:
        claim_base_name(connection, record.name)
    rows = [{**columns_of(record.as_base()), "fingerprint": record.fingerprint} for record in plain]
    _insert(connection, BASES, rows)
    return len(plain), [record for record in new if record.version is not None]


def _enter_tenants(connection: Connection, rows: Rows) -> dict[str, int]:
    ids = _insert(connection, TENANTS, [record.model_dump() for record in rows.tenants])
    return dict(zip((record.name for record in rows.tenants), ids, strict=True))


def _enter_keys(connection: Connection, arrival: Arrival, tenants: Mapping[str, int]) -> int:
    """The new tenants', and those of the platform that are not known here."""
    here = connection.execute(select(API_KEYS.c.id, API_KEYS.c.secret_sha256, API_KEYS.c.tenant_id)).all()
    platforms = {(row.id, row.secret_sha256) for row in here if row.tenant_id is None}
    taken = {row.id for row in here} | {row.secret_sha256 for row in here}
    shared = (record for record in arrival.export.rows.keys if record.tenant is None)
    new = [
        *arrival.rows.keys,
        *(record for record in shared if (record.id, record.secret_sha256) not in platforms),
    ]
    for record in new:
        if not taken.isdisjoint({record.id, record.secret_sha256}):
            raise ConflictError(f"There is a key {record.id!a} already, and it is another.", code="key_exists")
    values = [
        {
            **record.model_dump(exclude={"tenant"}),
            "scopes": sorted(record.scopes),
            "tenant_id": None if record.tenant is None else tenants[record.tenant],
        }
        for record in new
    ]
    _insert(connection, API_KEYS, values)
    return len(new)


def _enter_adapters(connection: Connection, rows: Rows, tenants: Mapping[str, int]) -> dict[tuple[str, str], int]:
    for record in rows.adapters:
        claim_adapter_name(connection, record.tenant, record.name)
    values = [
        {**record.model_dump(exclude={"tenant"}), "tenant_id": tenants[record.tenant]} for record in rows.adapters
    ]
    ids = _insert(connection, ADAPTERS, values)
    return dict(zip(((record.tenant, record.name) for record in rows.adapters), ids, strict=True))


def _enter_versions(
    connection: Connection,
    arrival: Arrival,
    models: Sequence[BaseRecord],
    adapters: Mapping[tuple[str, str], int],
) -> dict[str, int]:
    """Their ids by their labels. The models are bases, too."""
    records = arrival.rows.versions
    labels = {record.label for record in records}
    for record in models:
        if record.version not in labels:
            raise model_missing(record.name)
        _insert(connection, BASES, [_model_columns(record, arrival.models.get(record.fingerprint))])
    ids = _insert(connection, VERSIONS, [_version_columns(record, arrival, adapters) for record in records])
    return dict(zip((record.label for record in records), ids, strict=True))


def _model_columns(record: BaseRecord, judged: Base | None) -> dict[str, Any]:
    model = record.as_base()
    if judged is not None:
        model = replace(judged, name=model.name, size_bytes=model.size_bytes, created_at=model.created_at)
    return {**columns_of(model), "path": "", "fingerprint": record.fingerprint, "is_model": True}


def _version_columns(
    record: VersionRecord, arrival: Arrival, adapters: Mapping[tuple[str, str], int]
) -> dict[str, Any]:
    stated = record.files
    manifest = arrival.manifests[identity_of(record)] if record.has_files else stated
    return {
        **_of_adapter(record, adapters, "has_files"),
        "state": record.entered_state.value,
        "manifest": dump_manifest(replace(manifest, extra=stated.extra)),
        "digest": manifest.digest,
        "base_fingerprint": manifest.base_fingerprint,
        "model_fingerprint": manifest.model_fingerprint,
        "size_bytes": manifest.size_bytes,
    }


def _enter_promotions(
    connection: Connection, rows: Rows, adapters: Mapping[tuple[str, str], int], versions: Mapping[str, int]
) -> None:
    """The promotions, the stacks that they make, and the aliases that stand on them."""
    values = [
        {
            **_of_adapter(record, adapters, "position", "replaced", "version"),
            "version_id": versions[f"{record.tenant}/{record.adapter}@{record.version}"],
        }
        for record in rows.promotions
    ]
    ids = _insert(connection, PROMOTIONS, values)
    places = ((record.tenant, record.adapter, record.alias, record.position) for record in rows.promotions)
    at = dict(zip(places, ids, strict=True))
    stacked = [
        {"upper": promotion_id, "lower": at[record.tenant, record.adapter, record.alias, record.replaced]}
        for promotion_id, record in zip(ids, rows.promotions, strict=True)
        if record.replaced is not None
    ]
    if stacked:
        is_upper = PROMOTIONS.c.id == bindparam("upper")
        connection.execute(update(PROMOTIONS).where(is_upper).values(replaced_id=bindparam("lower")), stacked)
    aliases = [
        {
            **_of_adapter(record, adapters, "promotion"),
            "promotion_id": at[record.tenant, record.adapter, record.name, record.promotion],
        }
        for record in rows.aliases
    ]
    _insert(connection, ALIASES, aliases)


def _enter_usage(connection: Connection, export: Export, tenants: Mapping[str, int]) -> None:
    try:
        _enter_in_chunks(connection, USAGE, (record for record in export.usage() if record.tenant in tenants))
    except IntegrityError as error:
        raise _used_twice(export) from error


def _used_twice(export: Export) -> InvalidError:
    """Looked for once the database has found it: to know all lines would take their room in memory."""
    seen = set()
    for number, record in enumerate(export.usage(), start=1):
        key = (record.day, record.tenant, record.adapter, record.version, record.key_id)
        if key in seen:
            return damaged("usage.jsonl", number, "it is there twice")
        seen.add(key)
    return InvalidError("usage.jsonl: the registry has a line of it already.", code="export_damaged")


def _enter_audit(connection: Connection, records: Iterable[AuditRecord], tenants: Mapping[str, int]) -> bool:
    """The rows of the new tenants' things, and those of nobody's that are not known here; whether there were any."""
    new = (record for record in records if record.tenant in tenants or _is_unknown(connection, record))
    return _enter_in_chunks(connection, AUDIT, new)


def _enter_in_chunks(connection: Connection, table: Table, records: Iterator[Record]) -> bool:
    """Whether there were any."""
    is_any = False
    while chunk := [record.model_dump() for record in islice(records, _CHUNK)]:
        _insert(connection, table, chunk)
        is_any = True
    return is_any


def _is_unknown(connection: Connection, record: AuditRecord) -> bool:
    if record.tenant is not None:
        return False
    same = select(AUDIT.c.id).where(
        AUDIT.c.tenant.is_(None),
        AUDIT.c.at == record.at,
        AUDIT.c.actor == record.actor,
        AUDIT.c.action == record.action,
        AUDIT.c.subject == record.subject,
    )
    return connection.execute(same).first() is None


def _of_adapter(record: Any, adapters: Mapping[tuple[str, str], int], *left_out: str) -> dict[str, Any]:  # noqa: ANN401  — of an adapter's
    """The columns of what belongs to an adapter."""
    stated: dict[str, Any] = record.model_dump(exclude={*_OF_ADAPTER, *left_out})
    return {**stated, "adapter_id": adapters[record.tenant, record.adapter]}


def _insert(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> list[Any]:
    """The new rows' ids, in the order of `rows`."""
    if not rows:
        return []
    query = insert(table).returning(table.c.id, sort_by_parameter_order=True)
    return list(connection.execute(query, list(rows)).scalars())
