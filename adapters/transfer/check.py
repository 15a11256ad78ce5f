"""Whether an export's records fit together, as a registry's rows always do. Knows no database."""

from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import fields
from graphlib import CycleError, TopologicalSorter
from typing import TypeVar

from adapters.callers import TenantLimits
from adapters.errors import InvalidError
from adapters.keys import require_scopes
from adapters.names import quoted, require_adapter_name
from adapters.splits import MAX_ARMS, MAX_WEIGHT
from adapters.stated import require_note, require_origin, require_tags
from adapters.transfer.files import Export, damaged
from adapters.transfer.records import (
    AdapterRecord,
    AliasRecord,
    BaseRecord,
    GrantRecord,
    KeyRecord,
    PromotionRecord,
    Record,
    TenantRecord,
    VersionRecord,
)
from adapters.values import SERVABLE, VersionState

AnyRecord = TypeVar("AnyRecord", bound=Record)
Fault = str | None
"""What is wrong, without a full stop."""


def check(export: Export) -> None:
    """Also that what is streamed is whole: it is read here for the first time.

    Raises:
        InvalidError: `export_damaged`, or `export_incomplete`: the files of a version are not there.
    """
    rows, whose = export.rows, export.header.tenant
    tenants = _each("tenants", rows.tenants, lambda one: one.name, lambda one: _tenant(one, whose))
    _each("keys", rows.keys, lambda one: one.id, lambda one: _key(one, whose, tenants))
    _each("keys", rows.keys, lambda one: one.secret_sha256)
    originals = {one.fingerprint: one for one in rows.bases}
    bases = _each("bases", rows.bases, lambda one: one.fingerprint, lambda one: _base(one, originals))
    adapters = _each("adapters", rows.adapters, lambda one: (one.tenant, one.name), lambda one: _adapter(one, tenants))
    labels = {record.label for record in rows.versions}
    _each("versions", rows.versions, lambda one: one.label, lambda one: _version(one, adapters, bases, labels))
    _each("versions", rows.versions, lambda one: (one.tenant, one.adapter, one.files.digest))
    _require_ancestry(rows.versions)
    places = _each("promotions", rows.promotions, _place, lambda one: _promotion(one, labels))
    _each("promotions", rows.promotions, _place, lambda one: _stacked(one, places))
    _each("aliases", rows.aliases, lambda one: (one.tenant, one.adapter, one.name), lambda one: _alias(one, places))
    _each("grants", rows.grants, lambda one: (one.tenant, one.adapter, one.grantee), lambda one: _grant(one, adapters))
    for number, row in enumerate(export.audit(), start=1):
        if row.tenant is None and whose is not None:
            raise damaged("audit.jsonl", number, "a tenant's export holds no row that is nobody's")
        if row.tenant is not None and row.tenant not in tenants:
            raise damaged("audit.jsonl", number, _stranger(row.tenant))
    for number, used in enumerate(export.usage(), start=1):
        if used.tenant not in tenants:
            raise damaged("usage.jsonl", number, _stranger(used.tenant))
    _require_blobs(export)


def _each(
    name: str,
    records: Iterable[AnyRecord],
    key: Callable[[AnyRecord], Hashable],
    fault: Callable[[AnyRecord], Fault] = lambda _: None,
) -> frozenset[Hashable]:
    """The keys of all records, of which each occurs once and has no fault."""
    seen: set[Hashable] = set()
    for number, record in enumerate(records, start=1):
        try:
            what = "it is there twice" if key(record) in seen else fault(record)
        except InvalidError as error:
            what = error.message.removesuffix(".")
        if what is not None:
            raise damaged(f"{name}.jsonl", number, what)
        seen.add(key(record))
    return frozenset(seen)


def _tenant(record: TenantRecord, whose: str | None) -> Fault:
    if whose not in {None, record.name}:
        return f"the export is of {quoted(whose or '')} alone"
    known = {field.name for field in fields(TenantLimits)}
    return next((f"there is no limit {quoted(name)}" for name in sorted(record.limits.keys() - known)), None)


def _key(record: KeyRecord, whose: str | None, tenants: Container[Hashable]) -> Fault:
    require_scopes(record.tenant, frozenset(record.scopes))
    if record.tenant is None:
        return None if whose is None else "a tenant's export holds no key of the platform"
    return None if record.tenant in tenants else _stranger(record.tenant)


def _base(record: BaseRecord, bases: Mapping[str, BaseRecord]) -> Fault:
    if record.version not in {None, record.name}:
        return "a base that is a version has that version's name"
    model = record.as_base()
    if model.quantised_from is None:
        return None
    original = bases.get(model.quantised_from)
    if original is None or original.modules != record.modules or original.as_base().is_quantised:
        return "what it was quantised from is no base in bases.jsonl with the same layers"
    return None if model.is_quantised else "it was quantised from another base, yet its config says nothing of it"


def _adapter(record: AdapterRecord, tenants: Container[Hashable]) -> Fault:
    require_adapter_name(record.name)
    return None if record.tenant in tenants else _stranger(record.tenant)


def _version(
    record: VersionRecord, adapters: Container[Hashable], bases: Container[Hashable], labels: Container[str]
) -> Fault:
    files = record.files
    require_origin(record.origin)
    require_note(record.note)
    if (record.tenant, record.adapter) not in adapters:
        return "its adapter is not in adapters.jsonl"
    if files.base_fingerprint not in bases or (files.model_fingerprint or files.base_fingerprint) not in bases:
        return "its base is not in bases.jsonl"
    if record.state in SERVABLE and not record.has_files:
        return f"it is {record.state}, and its files are not in the export"
    faults = {
        "tags stand once each, sorted": require_tags(record.tags) != list(record.tags),
        "a model, and nothing else, has a model_fingerprint": files.kind.is_model != bool(files.model_fingerprint),
        "a retired version, and no other, has a retired_at": _is_retired(record) != bool(record.retired_at),
    }
    if any(faults.values()):
        return next(what for what, is_so in faults.items() if is_so)
    ours = f"{record.tenant}/"
    strange = (parent for parent in record.parents if parent not in labels or not parent.startswith(ours))
    return next((f"the tenant has no version {quoted(parent)}" for parent in strange), None)


def _require_ancestry(versions: Sequence[VersionRecord]) -> None:
    """A version is made of earlier ones: none is its own parent, nor its parent's."""
    try:
        TopologicalSorter({one.label: one.parents for one in versions}).prepare()
    except CycleError as error:
        label = error.args[1][0]
        number = next(number for number, one in enumerate(versions, start=1) if one.label == label)
        raise damaged("versions.jsonl", number, f"{label} is among its own ancestors") from error


def _is_retired(record: VersionRecord) -> bool:
    return record.state is VersionState.RETIRED


def _place(record: PromotionRecord) -> Hashable:
    return (record.tenant, record.adapter, record.alias, record.position)


def _promotion(record: PromotionRecord, labels: Container[str]) -> Fault:
    arms = record.split or ((record.version, 1),)
    numbers = [number for number, _ in arms]
    heaviest = max(weight for _, weight in arms)
    if any(f"{record.tenant}/{record.adapter}@{number}" not in labels for number in numbers):
        return "it names a version that is not in versions.jsonl"
    if record.split is None:
        return None
    is_split = 1 < len(arms) <= MAX_ARMS and numbers == sorted(set(numbers)) and heaviest <= MAX_WEIGHT
    return None if is_split and (record.version, heaviest) in arms else "it is not a split"


def _stacked(record: PromotionRecord, places: Container[Hashable]) -> Fault:
    if record.replaced is None:
        return None
    below = (record.tenant, record.adapter, record.alias, record.replaced)
    is_below = record.replaced < record.position and below in places  # older: so no stack goes round in circles
    return None if is_below else f"there is no earlier promotion {record.replaced}"


def _alias(record: AliasRecord, places: Container[Hashable]) -> Fault:
    on = (record.tenant, record.adapter, record.name, record.promotion)
    return None if on in places else f"there is no promotion {record.promotion} of it"


def _grant(record: GrantRecord, adapters: Container[Hashable]) -> Fault:
    if record.grantee == record.tenant:
        return "an adapter is its owner's without a grant"
    return None if (record.tenant, record.adapter) in adapters else "its adapter is not in adapters.jsonl"


def _stranger(tenant: str) -> str:
    return f"the tenant {quoted(tenant)} is not in tenants.jsonl"


def _require_blobs(export: Export) -> None:
    for number, record in enumerate(export.rows.versions, start=1):
        if record.has_files and not export.blob(record.files.digest).is_dir():
            raise InvalidError(
                f"versions.jsonl, line {number}: the files of {record.label} are not in the folder blobs.",
                code="export_incomplete",
            )
