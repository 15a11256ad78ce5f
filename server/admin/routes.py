"""The admin API whole."""

from server.admin import (
    adapters,
    aliases,
    audit,
    grants,
    keys,
    pins,
    publishing,
    residency,
    resumable,
    shadows,
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
    shadows.router,
    grants.router,
    pins.router,
    residency.router,
    audit.router,
    usage.router,
)
