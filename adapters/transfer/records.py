"""The lines of an export, each a JSON object. What is not exactly so is refused.

    registry.json       the format's number, the sha256 of the .jsonl files; written last: without it, nothing is whole
    tenants.jsonl       and keys, bases, adapters, versions, promotions, aliases, grants, audit, usage: a record a line
    blobs/<hex>/        the files of a blob, as the store has them

Names stand where the database has ids: those are new wherever it is imported. Secrets are nowhere, only their hashes.
"""

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from adapters.callers import Scope
from adapters.fingerprint import quantised_from
from adapters.manifests import load_manifest
from adapters.transfer.fields import (
    AliasName,
    Count,
    Day,
    Fingerprint,
    Hex,
    Moment,
    Name,
    Number,
    Object,
    PathText,
    Shown,
    Size,
    StoredManifest,
    Text,
    Who,
)
from adapters.values import Base, Manifest, Module, VersionState

FORMAT: Final = 1


class Record(BaseModel):
    """A line."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TenantRecord(Record):
    """A tenant with its limits."""

    name: Name
    created_at: Moment
    limits: dict[Text, Size]
    default_adapter: Annotated[Shown, Field(max_length=200)] | None = None


class KeyRecord(Record):
    """An API key: enough to recognise its secret, not to know it."""

    id: Annotated[Shown, Field(min_length=1, max_length=64)]
    tenant: Name | None
    name: Annotated[Shown, Field(max_length=100)]
    prefix: Annotated[Shown, Field(max_length=16)]
    secret_sha256: Hex
    scopes: tuple[Scope, ...]
    created_at: Moment
    expires_at: Moment | None
    revoked_at: Moment | None


class BaseRecord(Record):
    """A base; `version` is its full name, if it is one."""

    name: Annotated[Shown, Field(min_length=1, max_length=200)]
    fingerprint: Fingerprint
    path: Annotated[PathText, Field(max_length=4096)]
    version: Annotated[Shown, Field(max_length=200)] | None
    chat_template_digest: Annotated[Text, Field(max_length=100)] | None
    parameter_count: Size
    size_bytes: Size
    created_at: Moment
    modules: dict[Text, tuple[Number, Number]]
    tensors: dict[Text, tuple[Size, ...]]
    config: Object

    def as_base(self) -> Base:
        """What the gate judges by."""
        stated = self.model_dump(exclude={"modules"})
        modules = {name: Module(*sizes) for name, sizes in self.modules.items()}
        return Base(**stated, modules=modules, quantised_from=quantised_from(self.config))


class AdapterRecord(Record):
    """An adapter."""

    tenant: Name
    name: Name
    created_at: Moment
    is_pinned: StrictBool = False


class VersionRecord(Record):
    """A version. Without `has_files`, its bytes were collected."""

    tenant: Name
    adapter: Name
    number: Number
    state: VersionState
    has_files: StrictBool
    manifest: StoredManifest
    warnings: tuple[Shown, ...]
    origin: Object
    created_at: Moment
    created_by: Who
    parents: tuple[Text, ...]
    tags: tuple[Text, ...]
    note: Annotated[Text, Field(max_length=2000)]
    retired_at: Moment | None

    @property
    def label(self) -> str:
        """`acme/support@3`, its full name."""
        return f"{self.tenant}/{self.adapter}@{self.number}"

    @property
    def entered_state(self) -> VersionState:
        """In which it is entered: that a probe let an adapter pass is for an engine to say, not for a file."""
        is_on_its_word = self.state is VersionState.READY and not self.files.kind.is_model
        return VersionState.UNPROBED if is_on_its_word else self.state

    @property
    def files(self) -> Manifest:
        """What follows from its bytes."""
        return load_manifest(self.manifest)


class PromotionRecord(Record):
    """One promotion of an alias: the `position`th in its history. `replaced` is the position below it in the stack."""

    tenant: Name
    adapter: Name
    alias: AliasName
    position: Number
    version: Number
    split: tuple[tuple[Number, Number], ...] | None
    replaced: Number | None
    created_at: Moment
    created_by: Who


class ShadowRecord(Record):
    """The version that gets a copy of so much of an alias's traffic."""

    version: Number
    percent: Annotated[Number, Field(le=100)]


class AliasRecord(Record):
    """An alias, and the position in its history of the promotion that it stands on."""

    tenant: Name
    adapter: Name
    name: AliasName
    promotion: Number
    revision: Number
    moved_at: Moment
    moved_by: Who
    shadow: ShadowRecord | None = None


class GrantRecord(Record):
    """A grant."""

    tenant: Name
    adapter: Name
    grantee: Name
    created_at: Moment
    created_by: Who


class AuditRecord(Record):
    """A row of the audit."""

    at: Moment
    actor: Who
    actor_tenant: Name | None
    action: Annotated[Shown, Field(max_length=64)]
    tenant: Name | None
    subject: Annotated[Shown, Field(max_length=300)]
    detail: Object
    request_id: Annotated[Shown, Field(max_length=64)] | None


class UsageRecord(Record):
    """A row of what was used. `adapter` and `key_id` are names: what they stood for may be elsewhere."""

    day: Day
    tenant: Name
    adapter: Annotated[Shown, Field(max_length=140)]
    version: Annotated[Size, Field(lt=2**31)]
    key_id: Annotated[Shown, Field(max_length=64)]
    requests: Count
    failed_requests: Count
    prompt_tokens: Count
    completion_tokens: Count
    aborted_requests: Count = 0
    cached_tokens: Count = 0
    answered_requests: Count = 0
    first_token_ms: Count = 0
    request_ms: Count = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """All of an export's lines but the audit's and the usage's, in the order of their files."""

    tenants: tuple[TenantRecord, ...]
    keys: tuple[KeyRecord, ...]
    bases: tuple[BaseRecord, ...]
    adapters: tuple[AdapterRecord, ...]
    versions: tuple[VersionRecord, ...]
    promotions: tuple[PromotionRecord, ...]
    aliases: tuple[AliasRecord, ...]
    grants: tuple[GrantRecord, ...]

    def of(self, tenants: Container[str | None]) -> "Rows":
        """What is theirs."""
        return Rows(
            tenants=tuple(record for record in self.tenants if record.name in tenants),
            keys=tuple(record for record in self.keys if record.tenant in tenants),
            bases=(),
            adapters=tuple(record for record in self.adapters if record.tenant in tenants),
            versions=tuple(record for record in self.versions if record.tenant in tenants),
            promotions=tuple(record for record in self.promotions if record.tenant in tenants),
            aliases=tuple(record for record in self.aliases if record.tenant in tenants),
            grants=tuple(record for record in self.grants if record.tenant in tenants),
        )


RECORDS: Final[dict[str, type[Record]]] = {
    "tenants": TenantRecord,
    "keys": KeyRecord,
    "bases": BaseRecord,
    "adapters": AdapterRecord,
    "versions": VersionRecord,
    "promotions": PromotionRecord,
    "aliases": AliasRecord,
    "grants": GrantRecord,
}
"""A field of `Rows` → what stands in its file."""
STREAMED: Final[dict[str, type[Record]]] = {"audit": AuditRecord, "usage": UsageRecord}
"""What grows without an end, and is never in memory as a whole."""


class FileRecord(Record):
    """What one .jsonl file holds."""

    lines: Size
    sha256: Hex


class Header(Record):
    """registry.json."""

    format: Literal[1]
    made_at: Moment
    tenant: Name | None
    """None: the whole registry."""
    blob_count: Size
    size_bytes: Size
    """Of the blobs."""
    files: dict[str, FileRecord]


@dataclass(frozen=True, slots=True)
class Transfer:
    """How far an export or import has come; the last one says what was done in all."""

    tenants: int
    adapters: int
    versions: int
    blobs: int
    """So far, of `blob_count`."""
    blob_count: int
    size_bytes: int
    """Of the blobs, so far."""

    def with_blob(self, size_bytes: int) -> "Transfer":
        """One blob further."""
        return replace(self, blobs=self.blobs + 1, size_bytes=self.size_bytes + size_bytes)
