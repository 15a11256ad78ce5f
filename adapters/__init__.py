"""The registry: which adapters exist, whose they are, which version is live, where the bytes lie."""

from adapters.durable import sync_to_disk
from adapters.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    KeyRejectedError,
    LorikeetError,
    NotFoundError,
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
from adapters.upload import Member, archive_members, folder_members
from adapters.values import (
    Adapter,
    Alias,
    ApiKey,
    Base,
    BlobState,
    Caller,
    IssuedKey,
    Kind,
    Manifest,
    Module,
    Published,
    Scope,
    Target,
    Tenant,
    VerifiedBlob,
    Version,
    VersionState,
)
from adapters.versions import Probe, ProbeVerdict

__all__ = [
    "Adapter",
    "Alias",
    "ApiKey",
    "Base",
    "BaseFingerprint",
    "BlobState",
    "Caller",
    "ConflictError",
    "ForbiddenError",
    "InvalidError",
    "IssuedKey",
    "KeyRejectedError",
    "Kind",
    "Limits",
    "LorikeetError",
    "Manifest",
    "Member",
    "Module",
    "NotFoundError",
    "Probe",
    "ProbeVerdict",
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
    "TooLargeError",
    "VerifiedBlob",
    "Version",
    "VersionState",
    "archive_members",
    "fingerprint_base",
    "folder_members",
    "open_registry",
    "require_adapter_name",
    "sync_to_disk",
]
