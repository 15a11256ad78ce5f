"""What goes over the wire in the admin API. Bodies are strict: an unknown field is refused."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from adapters import Adapter, Alias, ApiKey, IssuedKey, Scope, Tenant, Version, VersionState
from server.residency import Resident

Item = TypeVar("Item")
Number = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""A version's number."""


class Body(BaseModel):
    """A request's body."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NewTenant(Body):
    """POST /tenants."""

    name: str


class NewKey(Body):
    """POST /tenants/{tenant}/keys."""

    name: str
    scopes: Annotated[frozenset[Scope], Field(min_length=1)] = frozenset({Scope.INFER})
    expires_at: AwareDatetime | None = None


class Pointed(Body):
    """PUT …/aliases/{alias}."""

    version: Annotated[Number, Field(strict=True)]


class Page(BaseModel, Generic[Item]):
    """A list."""

    data: list[Item]


class TenantOut(BaseModel):
    """A tenant."""

    name: str
    created_at: datetime

    @classmethod
    def of(cls, tenant: Tenant) -> "TenantOut":
        """As it goes out."""
        return cls(name=tenant.name, created_at=tenant.created_at)


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

    secret: str

    @classmethod
    def issued(cls, issued: IssuedKey) -> "IssuedKeyOut":
        """As it goes out."""
        return cls(**KeyOut.of(issued.key).model_dump(), secret=issued.secret)


class AliasOut(BaseModel):
    """An alias. `revision` is what `If-Match` takes."""

    name: str
    version: int
    revision: int
    moved_at: datetime
    moved_by: str

    @classmethod
    def of(cls, alias: Alias) -> "AliasOut":
        """As it goes out."""
        return cls.model_validate(alias, from_attributes=True)

    @property
    def etag(self) -> str:
        """The `ETag` header."""
        return f'"{self.revision}"'


class AdapterOut(BaseModel):
    """An adapter with its aliases."""

    tenant: str
    name: str
    created_at: datetime
    version_count: int
    live: int | None
    aliases: list[AliasOut]

    @classmethod
    def of(cls, adapter: Adapter) -> "AdapterOut":
        """As it goes out."""
        return cls.model_validate(adapter, from_attributes=True)


class VersionOut(BaseModel):
    """A version: who it is, and what follows from its bytes."""

    label: str
    tenant: str
    adapter: str
    version: int
    state: VersionState
    digest: str
    base: str
    rank: int
    alpha: float
    target_modules: list[str]
    dtype: str
    size_bytes: int
    warnings: list[str]
    origin: Mapping[str, Any]
    created_at: datetime
    created_by: str

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
            rank=manifest.rank,
            alpha=manifest.alpha,
            target_modules=list(manifest.target_modules),
            dtype=manifest.dtype,
            size_bytes=manifest.size_bytes,
            warnings=list(version.warnings),
            origin=version.origin,
            created_at=version.created_at,
            created_by=version.created_by,
        )


class ResidentOut(BaseModel):
    """An adapter in the engine."""

    tenant: str
    adapter: str
    version: str
    leases: int
    is_loaded: bool

    @classmethod
    def of(cls, resident: Resident) -> "ResidentOut":
        """As it goes out."""
        return cls(leases=resident.leases, is_loaded=resident.is_loaded, **resident.labels._asdict())
