"""All that a registry says of itself through its public methods, to compare two of them."""

from dataclasses import asdict
from datetime import date
from typing import Any

from adapters import Caller, Registry


def everything(registry: Registry, *, without: str = "") -> dict[str, Any]:
    """By what it is; ids left out, which are new wherever a registry is copied, and audit rows of one action."""
    operator = Caller.operator()
    tenants = [tenant.name for tenant in registry.tenants.list(operator)]
    adapters = [adapter for tenant in tenants for adapter in registry.adapters.list(operator, tenant)]
    names = [(adapter.tenant, adapter.name) for adapter in adapters]
    versions = [version for name in names for version in registry.versions.list(operator, *name)]
    audit = [row for row in registry.audit(operator, limit=1000) if row.action != without]
    return {
        "tenants": registry.tenants.list(operator),
        "keys": [registry.keys.list(operator, tenant) for tenant in (None, *tenants)],
        "bases": registry.bases.list(operator),
        "adapters": adapters,
        "versions": [_without_id(version) for version in versions],
        "histories": {
            (adapter.tenant, adapter.name, alias.name): registry.aliases.history(
                operator, adapter.tenant, adapter.name, alias=alias.name, limit=1000
            )
            for adapter in adapters
            for alias in adapter.aliases
        },
        "grants": [registry.grants.list(operator, *name) for name in names],
        "usage": registry.usage.read(operator, since=date.min, until=date.max),
        "audit": sorted((_without_id(row) for row in audit), key=repr),
    }


def _without_id(value: Any) -> dict[str, Any]:
    return {name: field for name, field in asdict(value).items() if name != "id"}
