"""The registry: which adapters exist, whose they are, which version is live, where the bytes lie."""

from adapters.callers import ApiKey, Caller, Grant, GrantedAdapter, IssuedKey, Scope, Tenant, TenantLimits
from adapters.collect import CollectedBlob
from adapters.durable import sync_to_disk
from adapters.entry import ProbeVerdict
from adapters.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    KeyRejectedError,
    LorikeetError,
    NotFoundError,
    Problem,
    RefusedError,
    RegistryError,
    StorageError,
    TooLargeError,
)
from adapters.fingerprint import BaseFingerprint, fingerprint_base
from adapters.limits import Limits
from adapters.names import Reference, require_adapter_name
from adapters.refusals import Refusal
from adapters.registry import Registry, open_registry
from adapters.settings import RegistrySettings
from adapters.strict_json import parse_strictly
from adapters.upload import Member, archive_members, folder_members
from adapters.usage import UsageField, UsageRow
from adapters.values import (
    Adapter,
    Alias,
    Arm,
    AuditRow,
    Base,
    BlobState,
    Kind,
    Manifest,
    Module,
    Move,
    Published,
    Target,
    Upload,
    Version,
    VersionState,
)
from adapters.verify import VerifiedBlob
from adapters.versions import Probe

__all__ = [
    "Adapter",
    "Alias",
    "ApiKey",
    "Arm",
    "AuditRow",
    "Base",
    "BaseFingerprint",
    "BlobState",
    "Caller",
    "CollectedBlob",
    "ConflictError",
    "ForbiddenError",
    "Grant",
    "GrantedAdapter",
    "InvalidError",
    "IssuedKey",
    "KeyRejectedError",
    "Kind",
    "Limits",
    "LorikeetError",
    "Manifest",
    "Member",
    "Module",
    "Move",
    "NotFoundError",
    "Probe",
    "ProbeVerdict",
    "Problem",
    "Published",
    "Reference",
    "Refusal",
    "RefusedError",
    "Registry",
    "RegistryError",
    "RegistrySettings",
    "Scope",
    "StorageError",
    "Target",
    "Tenant",
    "TenantLimits",
    "TooLargeError",
    "Upload",
    "UsageField",
    "UsageRow",
    "VerifiedBlob",
    "Version",
    "VersionState",
    "archive_members",
    "fingerprint_base",
    "folder_members",
    "open_registry",
    "parse_strictly",
    "require_adapter_name",
    "sync_to_disk",
]
