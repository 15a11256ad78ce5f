"""Who there is: callers, tenants, their keys and what they grant each other, as values. Times are aware UTC."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

_PUBLIC: Final = frozenset({"operator", "server"})
"""The platform's callers that have no key: their names say nothing of anybody."""


class Scope(StrEnum):
    """What an API key may do."""

    INFER = "infer"
    """Ask the base and its tenant's adapters."""
    ADMIN = "admin"
    """Manage its own tenant's adapters, aliases and keys."""
    PLATFORM = "platform"
    """Manage every tenant. Such a key belongs to no tenant and asks no adapter."""


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """How much a tenant may have and use; None: as much as there is.

    Several servers on one registry share the month; minutes and requests in flight each counts for itself.
    """

    max_adapters: int | None = None
    max_bytes: int | None = None
    """Of the weights that are kept for its versions, each blob once: of those that can be served, and of those that no
    longer can until they are collected, unless another version keeps them anyway."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt and answer together."""
    max_concurrency: int | None = None
    """Requests in flight."""
    monthly_tokens: int | None = None
    """Prompt and answer together, in a calendar month (UTC)."""
    weight: int | None = None
    """Its share beside other tenants' when there is not enough for all; None is 1."""
    priority: int | None = None
    """Lower goes first, whatever the shares: as in vLLM. None is 0."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `tenant` is None for the platform itself; `name` is what the audit records."""

    tenant: str | None
    scopes: frozenset[Scope]
    name: str
    idempotency_key: str | None = None
    """Of this one call: if it was carried out under this key before, it is not carried out again."""
    request_id: str | None = None
    """Of this one call, for the audit."""
    key_id: str | None = None
    """The API key that it came with."""
    limits: TenantLimits = TenantLimits()
    """Its tenant's, as they were when the key was looked up."""
    default_adapter: str | None = None
    """What its tenant's requests ask that name nothing, as it was then; None: the base."""

    @property
    def signature(self) -> str:
        """Its name in what a tenant reads: who promoted, who published."""
        return signature_of(self.name, self.tenant)

    @classmethod
    def operator(cls) -> "Caller":
        """The person at this machine's command line: the platform."""
        return cls(tenant=None, scopes=frozenset({Scope.PLATFORM}), name="operator")

    @classmethod
    def server(cls) -> "Caller":
        """A server that says what its engine found: the platform."""
        return cls(tenant=None, scopes=frozenset({Scope.PLATFORM}), name="server")


def signature_of(name: str, tenant: str | None) -> str:
    """How a caller is called in what tenants read: a key of the platform's is `platform`, whosever it is."""
    return name if tenant is not None or name in _PUBLIC else "platform"


@dataclass(frozen=True, slots=True)
class Tenant:
    """An owner of adapters and keys."""

    name: str
    created_at: datetime
    limits: TenantLimits = TenantLimits()
    default_adapter: str | None = None
    """What a request that names nothing asks, as the tenant would write it: `support@canary`; None: the base."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as it is listed: never the secret. `prefix` is the secret's first characters, for people."""

    id: str
    tenant: str | None
    name: str
    prefix: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key just made: the only time its `secret` is seen. It is empty when the same call is repeated."""

    key: ApiKey
    secret: str


@dataclass(frozen=True, slots=True)
class Grant:
    """A permission for another tenant to ask an adapter, as `owner/adapter`."""

    tenant: str
    adapter: str
    grantee: str
    created_at: datetime
    created_by: str


@dataclass(frozen=True, slots=True)
class GrantedAdapter:
    """What a tenant sees of an adapter that another granted it: what it may ask, and nothing of the owner's inside."""

    tenant: str
    """The owner."""
    name: str
    created_at: datetime
    is_live: bool
    """Whether its bare name means a version now."""

    @property
    def label(self) -> str:
        """`acme/support`: what the tenant asks, and where a list of such goes on."""
        return f"{self.tenant}/{self.name}"
