"""The registry's values: frozen, plain, and free of the database.

One word an idea (ARCHITECTURE.md, "Words"). Times are aware UTC datetimes, sizes are bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


class Scope(StrEnum):
    """What an API key may do."""

    INFER = "infer"
    """Ask the base and its tenant's adapters."""
    ADMIN = "admin"
    """Manage its own tenant's adapters, aliases and keys."""
    PLATFORM = "platform"
    """Manage every tenant. Such a key belongs to no tenant and asks no adapter."""


class VersionState(StrEnum):
    """Whether a version may be resolved."""

    READY = "ready"
    UNPROBED = "unprobed"
    """Published where no engine ran: the server probes it at its first load, before it answers."""
    REJECTED = "rejected"
    """The engine's probe failed."""
    RETIRED = "retired"

    @property
    def is_servable(self) -> bool:
        """Whether such a version may be asked; the server probes an unprobed one before it answers."""
        return self in {VersionState.READY, VersionState.UNPROBED}


class Kind(StrEnum):
    """What the weights are."""

    LORA = "lora"
    MERGED = "merged"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `tenant` is None for the platform itself; `name` is what history rows record."""

    tenant: str | None
    scopes: frozenset[Scope]
    name: str

    @classmethod
    def operator(cls) -> "Caller":
        """The person at this machine's command line: the platform."""
        return cls(tenant=None, scopes=frozenset({Scope.PLATFORM}), name="operator")


@dataclass(frozen=True, slots=True)
class Tenant:
    """An owner of adapters and keys."""

    name: str
    created_at: datetime


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
    """A key just made: the only time its `secret` is seen."""

    key: ApiKey
    secret: str


@dataclass(frozen=True, slots=True)
class Module:
    """A linear layer of a base: `in_features` × `out_features`, as LoRA's A is (r, in) and B is (out, r)."""

    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class Base:
    """A base model the registry knows, with the table that the gate checks adapters against."""

    name: str
    fingerprint: str
    path: str
    modules: Mapping[str, Module]
    """full module path (`model.layers.0.self_attn.q_proj`) → its sizes."""
    chat_template_digest: str | None
    parameter_count: int
    size_bytes: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Manifest:
    """What follows from an adapter's bytes; stored beside them, written last."""

    digest: str
    kind: Kind
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    """The distinct last names of the modules it changes, sorted: `("down_proj", "q_proj")`."""
    dtype: str
    tensor_count: int
    size_bytes: int
    base_fingerprint: str
    use_rslora: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields that a later version of this program wrote: kept, not understood."""


class BlobState(StrEnum):
    """What reading a version's bytes again has shown."""

    WHOLE = "whole"
    DAMAGED = "damaged"
    """They are not those of the digest; they were set aside."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class VerifiedBlob:
    """Bytes that were read again, and the full names of the versions that are made of them."""

    digest: str
    state: BlobState
    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Version:
    """Immutable weights with a number and a digest."""

    id: int
    tenant: str
    adapter: str
    number: int
    state: VersionState
    manifest: Manifest
    warnings: tuple[str, ...]
    origin: Mapping[str, Any]
    """Where it came from: method, run, dataset fingerprint, chat template digest … as the publisher stated it."""
    created_at: datetime
    created_by: str

    @property
    def label(self) -> str:
        """`acme/support@3`, its full name."""
        return f"{self.tenant}/{self.adapter}@{self.number}"


@dataclass(frozen=True, slots=True)
class Published:
    """The outcome of a publish: the version, and whether it is new (the same bytes twice give the same version)."""

    version: Version
    is_new: bool


@dataclass(frozen=True, slots=True)
class Alias:
    """A movable name for a version. `revision` grows by one at each move; it is the `If-Match` token."""

    name: str
    version: int
    revision: int
    moved_at: datetime
    moved_by: str


@dataclass(frozen=True, slots=True)
class Adapter:
    """A name within a tenant, with its aliases and how many versions it has."""

    tenant: str
    name: str
    created_at: datetime
    version_count: int
    aliases: tuple[Alias, ...]

    @property
    def live(self) -> int | None:
        """The number of the version that the bare name means, if any."""
        return next((alias.version for alias in self.aliases if alias.name == "live"), None)


@dataclass(frozen=True, slots=True)
class Target:
    """What a request resolved to: one version, fixed for the request's whole life."""

    version_id: int
    tenant: str
    adapter: str
    number: int
    digest: str
    rank: int
    base_fingerprint: str
    is_probed: bool

    @property
    def label(self) -> str:
        """`acme/support@3`, its full name."""
        return f"{self.tenant}/{self.adapter}@{self.number}"
