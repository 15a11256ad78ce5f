"""The registry: which adapters exist, whose they are, which version is live, where the bytes lie."""

from adapters.audit import AuditRow
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
from adapters.spelling import did_you_mean
from adapters.strict_json import parse_strictly
from adapters.strict_yaml import parse_yaml, yaml_key_lines
from adapters.upload import Member, archive_members, folder_members
from adapters.usage import UsageField, UsageRow
from adapters.values import (
    Adapter,
    Alias,
    Arm,
    Base,
    BlobState,
    Kind,
    Manifest,
    Module,
    Move,
    Published,
    Shadow,
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
    "Shadow",
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
    "did_you_mean",
    "fingerprint_base",
    "folder_members",
    "open_registry",
    "parse_strictly",
    "parse_yaml",
    "require_adapter_name",
    "sync_to_disk",
    "yaml_key_lines",
]
