"""What goes over the wire in the admin API."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from adapters import (
    Adapter,
    Alias,
    ApiKey,
    Arm,
    AuditRow,
    Grant,
    IssuedKey,
    Kind,
    Move,
    Scope,
    Shadow,
    Tenant,
    TenantLimits,
    UsageRow,
    Version,
    VersionState,
)

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """A part of a list, and the cursor for the next one."""

    data: list[Item]
    next: str | None = None


class TenantOut(BaseModel):
    """A tenant."""

    name: str
    created_at: datetime
    limits: TenantLimits
    default_adapter: str | None

    @classmethod
    def of(cls, tenant: Tenant) -> "TenantOut":
        """As it goes out."""
        return cls.model_validate(tenant, from_attributes=True)


class KeyOut(BaseModel):
    """A key, without its secret."""

    id: str
    tenant: str | None
    name: str
    prefix: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, key: ApiKey) -> "KeyOut":
        """As it goes out."""
        return cls.model_validate(
            {name: getattr(key, name) for name in cls.model_fields if name != "scopes"} | {"scopes": sorted(key.scopes)}
        )


class IssuedKeyOut(KeyOut):
    """A key just made, with the secret that is shown this once."""

    secret: str | None

    @classmethod
    def issued(cls, issued: IssuedKey) -> "IssuedKeyOut":
        """As it goes out."""
        return cls(**KeyOut.of(issued.key).model_dump(), secret=issued.secret or None)


class ArmOut(BaseModel):
    """A version's share of an alias."""

    version: int
    weight: int

    @classmethod
    def all_of(cls, arms: Sequence[Arm]) -> "list[ArmOut]":
        """As they go out."""
        return [cls(version=arm.version, weight=arm.weight) for arm in arms]


class ShadowOut(BaseModel):
    """The version that gets a copy of so much of an alias's traffic."""

    version: int
    percent: int

    @classmethod
    def of(cls, shadow: Shadow) -> "ShadowOut":
        """As it goes out."""
        return cls(version=shadow.version, percent=shadow.percent)


class AliasOut(BaseModel):
    """An alias. `revision` is what `If-Match` takes; `version` is null where it is split."""

    name: str
    version: int | None
    split: list[ArmOut]
    revision: int
    moved_at: datetime
    moved_by: str
    shadow: ShadowOut | None

    @classmethod
    def of(cls, alias: Alias) -> "AliasOut":
        """As it goes out."""
        return cls(
            name=alias.name,
            version=alias.version,
            split=ArmOut.all_of(alias.arms),
            revision=alias.revision,
            moved_at=alias.moved_at,
            moved_by=alias.moved_by,
            shadow=ShadowOut.of(alias.shadow) if alias.shadow else None,
        )

    @property
    def etag(self) -> str:
        """The `ETag` header."""
        return f'"{self.revision}"'


class MoveOut(BaseModel):
    """One promotion of an alias; they are counted from 1, the first."""

    number: int
    version: int | None
    split: list[ArmOut]
    at: datetime
    by: str

    @classmethod
    def of(cls, move: Move) -> "MoveOut":
        """As it goes out."""
        version = move.arms[0].version if len(move.arms) == 1 else None
        return cls(number=move.number, version=version, split=ArmOut.all_of(move.arms), at=move.at, by=move.by)


class AdapterOut(BaseModel):
    """An adapter with its aliases."""

    tenant: str
    name: str
    created_at: datetime
    version_count: int
    live: int | None
    aliases: list[AliasOut]
    is_pinned: bool

    @classmethod
    def of(cls, adapter: Adapter) -> "AdapterOut":
        """As it goes out."""
        return cls(
            tenant=adapter.tenant,
            name=adapter.name,
            created_at=adapter.created_at,
            version_count=adapter.version_count,
            live=adapter.live_version,
            aliases=[AliasOut.of(alias) for alias in adapter.aliases],
            is_pinned=adapter.is_pinned,
        )


class GrantOut(BaseModel):
    """Another tenant that may ask an adapter."""

    tenant: str
    adapter: str
    grantee: str
    created_at: datetime
    created_by: str

    @classmethod
    def of(cls, grant: Grant) -> "GrantOut":
        """As it goes out."""
        return cls.model_validate(grant, from_attributes=True)


class VersionOut(BaseModel):
    """A version: who it is, and what follows from its bytes."""

    label: str
    tenant: str
    adapter: str
    version: int
    state: VersionState
    digest: str
    base: str
    kind: Kind
    rank: int | None
    alpha: float | None
    target_modules: list[str]
    dtype: str
    size_bytes: int
    warnings: list[str]
    origin: Mapping[str, Any]
    parents: list[str]
    tags: list[str]
    note: str
    created_at: datetime
    created_by: str
    retired_at: datetime | None

    @classmethod
    def of(cls, version: Version) -> "VersionOut":
        """As it goes out."""
        manifest = version.manifest
        return cls(
            label=version.label,
            tenant=version.tenant,
            adapter=version.adapter,
            version=version.number,
            state=version.state,
            digest=manifest.digest,
            base=manifest.base_fingerprint,
            kind=manifest.kind,
            rank=manifest.rank,
            alpha=manifest.alpha,
            target_modules=list(manifest.target_modules),
            dtype=manifest.dtype,
            size_bytes=manifest.size_bytes,
            warnings=list(version.warnings),
            origin=version.origin,
            parents=list(version.parents),
            tags=list(version.tags),
            note=version.note,
            created_at=version.created_at,
            created_by=version.created_by,
            retired_at=version.retired_at,
        )


class AuditOut(BaseModel):
    """Who did what."""

    id: int
    at: datetime
    actor: str
    actor_tenant: str | None
    action: str
    tenant: str | None
    subject: str
    detail: Mapping[str, Any]
    request_id: str | None

    @classmethod
    def of(cls, row: AuditRow) -> "AuditOut":
        """As it goes out."""
        return cls.model_validate(row, from_attributes=True)


class UsageOut(BaseModel):
    """What was used, and by whom; null is what it was summed over."""

    day: date | None
    tenant: str | None
    adapter: str | None
    version: int | None
    key_id: str | None
    requests: int
    failed_requests: int
    prompt_tokens: int
    completion_tokens: int
    aborted_requests: int
    cached_tokens: int
    answered_requests: int
    first_token_ms: int
    request_ms: int
    mean_first_token_ms: float | None
    mean_request_ms: float | None

    @classmethod
    def of(cls, row: UsageRow) -> "UsageOut":
        """As it goes out."""
        return cls.model_validate(row, from_attributes=True)
