"""The registry's values: frozen, plain, and free of the database.

One word an idea (ARCHITECTURE.md, "Words"). Times are aware UTC datetimes, sizes are bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

QUANTISED_KEYS: Final = frozenset({"quantization_config", "compression_config"})
"""Where a config.json says that the weights are quantised, and how."""


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


SERVABLE: Final = frozenset(state for state in VersionState if state.is_servable)
"""The states in which a version may be resolved, for queries and rows."""


class Kind(StrEnum):
    """What the weights are."""

    LORA = "lora"
    MERGED = "merged"
    FULL = "full"

    @property
    def is_model(self) -> bool:
        """Whether it is a whole model, which a server starts on, rather than an adapter, which one loads."""
        return self is not Kind.LORA


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
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Every tensor of the checkpoint → its shape: what a `full` or `merged` version of it must have, too."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Its config.json."""
    version: str | None = None
    """`acme/model@2`, if this base is itself a version: only its tenant, and whom it was granted to, may ask it."""
    quantised_from: str | None = None
    """The fingerprint of the model whose weights these are, in fewer bits; its adapters fit this base, too."""

    @property
    def is_quantised(self) -> bool:
        """Whether its weights are, as its config.json says."""
        return any(self.config.get(key) for key in QUANTISED_KEYS)

    @property
    def adapters_of(self) -> frozenset[str]:
        """The fingerprints of the bases whose adapters fit it."""
        return frozenset(each for each in (self.fingerprint, self.quantised_from) if each)

    def takes(self, fingerprint: str) -> bool:
        """Whether adapters of the base with this fingerprint fit it."""
        return fingerprint in self.adapters_of


@dataclass(frozen=True, slots=True)
class Manifest:
    """What follows from a version's bytes; stored beside them, written last."""

    digest: str
    kind: Kind
    dtype: str
    tensor_count: int
    size_bytes: int
    base_fingerprint: str
    """Of the base that an adapter belongs to, or that a model was made from."""
    rank: int | None = None
    """This and the next three are an adapter's (kind `lora`)."""
    alpha: float | None = None
    target_modules: tuple[str, ...] = ()
    """The distinct last names of the modules it changes, sorted: `("down_proj", "q_proj")`."""
    use_rslora: bool = False
    model_fingerprint: str | None = None
    """A model's own, as a base (kinds `merged` and `full`)."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields that a later version of this program wrote: kept, not understood."""


class BlobState(StrEnum):
    """What reading a version's bytes again has shown."""

    WHOLE = "whole"
    DAMAGED = "damaged"
    """They are not those of the digest; they were set aside."""
    MISSING = "missing"
    MENDED = "mended"
    """They were damaged where they lie; a whole copy that was cached has replaced them."""
    UNREADABLE = "unreadable"
    """The disk or the store failed: nothing is known."""


@dataclass(frozen=True, slots=True)
class DiskUse:
    """How much of this machine's disk versions take."""

    size_bytes: int
    budget_bytes: int | None
    """What a cache may take; None where the blobs themselves lie here: none of them gives way."""


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
    parents: tuple[str, ...] = ()
    """The full names of the versions that it was made from."""
    tags: tuple[str, ...] = ()
    note: str = ""
    retired_at: datetime | None = None

    @property
    def label(self) -> str:
        """`acme/support@3`, its full name."""
        return f"{self.tenant}/{self.adapter}@{self.number}"

    @property
    def target(self) -> "Target":
        """What a request for this very version resolves to."""
        return Target(
            version_id=self.id,
            tenant=self.tenant,
            adapter=self.adapter,
            number=self.number,
            kind=self.manifest.kind,
            digest=self.manifest.digest,
            rank=self.manifest.rank,
            base_fingerprint=self.manifest.base_fingerprint,
            is_probed=self.state is not VersionState.UNPROBED,
            size_bytes=self.manifest.size_bytes,
        )


@dataclass(frozen=True, slots=True)
class Published:
    """The outcome of a publish: the version, and whether it is new (the same bytes twice give the same version)."""

    version: Version
    is_new: bool


@dataclass(frozen=True, slots=True)
class Upload:
    """A version on its way, file by file and part by part."""

    id: str
    tenant: str
    adapter: str
    kind: Kind
    files: Mapping[str, int]
    """File name → how many of its bytes have come, for good."""
    created_at: datetime
    created_by: str
    version: str | None
    """What it became: `acme/support@3`."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One version's share of an alias's traffic: its weight among the weights of all arms."""

    version: int
    weight: int


@dataclass(frozen=True, slots=True)
class Alias:
    """A movable name for a version, or for a split between several.

    `revision` grows by one at each move; it is the `If-Match` token.
    """

    name: str
    arms: tuple[Arm, ...]
    """By version; just one, unless the alias is split."""
    revision: int
    moved_at: datetime
    moved_by: str
    shadow: "Shadow | None" = None

    @property
    def version(self) -> int | None:
        """The one version that it points at; None if it is split."""
        return self.arms[0].version if len(self.arms) == 1 else None


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version that gets a copy of a share of an alias's traffic; nobody sees its answers."""

    version: int
    percent: int
    """From 1 to 100."""


@dataclass(frozen=True, slots=True)
class Move:
    """One promotion of an alias: the `number`th under its name, from 1."""

    number: int
    arms: tuple[Arm, ...]
    at: datetime
    by: str


@dataclass(frozen=True, slots=True)
class Adapter:
    """A name within a tenant, with its aliases and how many versions it has."""

    tenant: str
    name: str
    created_at: datetime
    version_count: int
    aliases: tuple[Alias, ...]
    is_pinned: bool = False
    """Whether servers keep what its bare name means resident."""

    @property
    def live(self) -> Alias | None:
        """What the bare name means, if anything."""
        return next((alias for alias in self.aliases if alias.name == "live"), None)

    @property
    def live_version(self) -> int | None:
        """The one version that the bare name means; None if there is none, or a split."""
        return self.live.version if self.live else None


@dataclass(frozen=True, slots=True)
class Target:
    """What a request resolved to: one version, fixed for the request's whole life."""

    version_id: int
    tenant: str
    adapter: str
    number: int
    kind: Kind
    digest: str
    rank: int | None
    """An adapter's; a model has none."""
    base_fingerprint: str
    is_probed: bool
    size_bytes: int
    shadow: Shadow | None = None
    """Of the alias that it was found by."""

    @property
    def label(self) -> str:
        """`acme/support@3`, its full name."""
        return f"{self.tenant}/{self.adapter}@{self.number}"
