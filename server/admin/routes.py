"""The admin API whole."""

from server.admin import (
    adapters,
    aliases,
    audit,
    grants,
    keys,
    publishing,
    residency,
    resumable,
    tenants,
    usage,
    versions,
)

ROUTERS = (
    tenants.router,
    keys.router,
    adapters.router,
    publishing.router,
    resumable.router,
    versions.router,
    aliases.router,
    grants.router,
    residency.router,
    audit.router,
    usage.router,
)
