"""What is in the database, as an export's records. Every function works in the caller's transaction: one moment."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Row, Select, select

from adapters.fingerprint import quantised_from
from adapters.manifests import dump_manifest, load_manifest
from adapters.schema import (
    ADAPTERS,
    ALIASES,
    API_KEYS,
    AUDIT,
    BASES,
    BLOBS,
    GRANTS,
    PROMOTIONS,
    TENANTS,
    USAGE,
    VERSIONS,
)
from adapters.transfer.records import (
    AdapterRecord,
    AliasRecord,
    AuditRecord,
    BaseRecord,
    GrantRecord,
    KeyRecord,
    PromotionRecord,
    Record,
    Rows,
    TenantRecord,
    UsageRecord,
    VersionRecord,
)

AnyRecord = TypeVar("AnyRecord", bound=Record)

_CHUNK: Final = 1000
"""Rows in memory at once of what grows without an end: the audit, the usage."""
_NAMES: Final = (TENANTS.c.name.label("tenant"), ADAPTERS.c.name.label("adapter"))


def read_rows(connection: Connection, tenant: str | None) -> Rows:
    """All that is `tenant`'s, with the bases that it needs; None: all there is."""
    versions = _sorted(_versions(connection, tenant), "tenant", "adapter", "number")
    positions, promotions = _promotions(connection, tenant)
    return Rows(
        tenants=_sorted(_tenants(connection, tenant), "name"),
        keys=_sorted(_keys(connection, tenant), "created_at", "id"),
        bases=tuple(_bases(connection, tenant, versions)),
        adapters=_sorted(_adapters(connection, tenant), "tenant", "name"),
        versions=versions,
        promotions=_sorted(promotions, "tenant", "adapter", "alias", "position"),
        aliases=_sorted(_aliases(connection, tenant, positions), "tenant", "adapter", "name"),
        grants=_sorted(_grants(connection, tenant), "tenant", "adapter", "grantee"),
    )


def read_audit(connection: Connection, tenant: str | None) -> Iterator[AuditRecord]:
    """The audit of `tenant`'s things, the oldest row first; None: all of it."""
    query = select(AUDIT).order_by(AUDIT.c.id).execution_options(yield_per=_CHUNK)
    if tenant is not None:
        query = query.where(AUDIT.c.tenant == tenant)
    for row in connection.execute(query):
        yield AuditRecord(**_columns(row, "id"))


def read_usage(connection: Connection, tenant: str | None) -> Iterator[UsageRecord]:
    """What `tenant` has used; None: all."""
    query = select(USAGE).order_by(USAGE.c.id).execution_options(yield_per=_CHUNK)
    if tenant is not None:
        query = query.where(USAGE.c.tenant == tenant)
    for row in connection.execute(query):
        yield UsageRecord(**_columns(row, "id"))


def _tenants(connection: Connection, tenant: str | None) -> Iterator[TenantRecord]:
    for row in connection.execute(_of(select(TENANTS), tenant)):
        yield TenantRecord(**_columns(row, "id"))


def _keys(connection: Connection, tenant: str | None) -> Iterator[KeyRecord]:
    query = select(API_KEYS, TENANTS.c.name.label("tenant")).outerjoin(TENANTS, TENANTS.c.id == API_KEYS.c.tenant_id)
    for row in connection.execute(_of(query, tenant)):
        yield KeyRecord(**_columns(row, "tenant_id"))


def _bases(connection: Connection, tenant: str | None, versions: Sequence[VersionRecord]) -> Iterator[BaseRecord]:
    """Those of the versions, and what those were quantised from, and those that the versions are.

    One that two tenants' versions are is each one's own.
    """
    query = select(BASES).order_by(BASES.c.created_at, BASES.c.id)
    models = {record.files.model_fingerprint: record.label for record in reversed(versions)}
    needed = {record.files.base_fingerprint for record in versions} | models.keys()
    rows = connection.execute(query).all()
    needed |= {quantised_from(row.config) for row in rows if row.fingerprint in needed}
    for row in rows:
        if tenant is not None and row.fingerprint not in needed:
            continue
        version = row.name if row.is_model else None
        if version is not None and tenant is not None:
            version = models.get(row.fingerprint, version)
        columns = _columns(row, "id", "is_model") | {"name": version or row.name}
        yield BaseRecord(**columns, version=version)


def _adapters(connection: Connection, tenant: str | None) -> Iterator[AdapterRecord]:
    query = select(ADAPTERS, TENANTS.c.name.label("tenant")).join(TENANTS, TENANTS.c.id == ADAPTERS.c.tenant_id)
    for row in connection.execute(_of(query, tenant)):
        yield AdapterRecord(**_columns(row, "id", "tenant_id"))


def _versions(connection: Connection, tenant: str | None) -> Iterator[VersionRecord]:
    query = _of_adapters(select(VERSIONS, BLOBS.c.digest.is_not(None).label("has_files"), *_NAMES), VERSIONS, tenant)
    query = query.outerjoin(BLOBS, BLOBS.c.digest == VERSIONS.c.digest)
    for row in connection.execute(query):
        columns = _columns(
            row, "id", "adapter_id", "digest", "base_fingerprint", "model_fingerprint", "size_bytes", "manifest"
        )
        yield VersionRecord(**columns, manifest=dump_manifest(load_manifest(row.manifest)))


def _promotions(connection: Connection, tenant: str | None) -> tuple[dict[int, int], list[PromotionRecord]]:
    """The promotions, and the position of each by its id."""
    query = _of_adapters(select(PROMOTIONS, VERSIONS.c.number.label("version"), *_NAMES), PROMOTIONS, tenant)
    query = query.join(VERSIONS, VERSIONS.c.id == PROMOTIONS.c.version_id)
    positions: dict[int, int] = {}
    history: Counter[tuple[int, str]] = Counter()
    records = []
    for row in connection.execute(query.order_by(PROMOTIONS.c.id)):
        history[row.adapter_id, row.alias] += 1
        positions[row.id] = history[row.adapter_id, row.alias]
        columns = _columns(row, "id", "adapter_id", "version_id", "replaced_id")
        replaced = None if row.replaced_id is None else positions[row.replaced_id]
        records.append(PromotionRecord(**columns, position=positions[row.id], replaced=replaced))
    return positions, records


def _aliases(connection: Connection, tenant: str | None, positions: dict[int, int]) -> Iterator[AliasRecord]:
    query = _of_adapters(select(ALIASES, *_NAMES), ALIASES, tenant)
    for row in connection.execute(query):
        columns = _columns(row, "id", "adapter_id", "promotion_id")
        yield AliasRecord(**columns, promotion=positions[row.promotion_id])


def _grants(connection: Connection, tenant: str | None) -> Iterator[GrantRecord]:
    query = _of_adapters(select(GRANTS, *_NAMES), GRANTS, tenant)
    for row in connection.execute(query):
        yield GrantRecord(**_columns(row, "id", "adapter_id"))


def _of_adapters(query: Select[Any], table: Any, tenant: str | None) -> Select[Any]:  # noqa: ANN401  — a Table
    joined = query.join(ADAPTERS, ADAPTERS.c.id == table.c.adapter_id)
    return _of(joined.join(TENANTS, TENANTS.c.id == ADAPTERS.c.tenant_id), tenant)


def _of(query: Select[Any], tenant: str | None) -> Select[Any]:
    return query if tenant is None else query.where(TENANTS.c.name == tenant)


def _sorted(records: Iterable[AnyRecord], *by: str) -> tuple[AnyRecord, ...]:
    """In Python's order of texts: a database's depends on where it was set up."""
    return tuple(sorted(records, key=attrgetter(*by)))


def _columns(row: Row[Any], *left_out: str) -> dict[str, Any]:
    columns = row._asdict()
    return {name: columns[name] for name in columns.keys() - set(left_out)}
