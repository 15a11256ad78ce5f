"""Who may do what to whose: the only place where tenancy is decided, on the whole caller.

Invariant: for a caller of one tenant, another's tenant and one that does not exist are the same answer, byte for byte.
"""

from enum import Enum, auto
from typing import assert_never

from adapters.errors import ForbiddenError, NotFoundError
from adapters.names import quoted
from adapters.values import Caller, Scope


class Action(Enum):
    """The kinds of things that callers do."""

    ASK = auto()
    """Resolve an adapter to generate with it."""
    READ = auto()
    """See that a tenant and its adapters exist."""
    MANAGE = auto()
    """Change a tenant's adapters, aliases and keys, or see what they are made of."""
    OPERATE = auto()
    """Change what all tenants share: the tenants, the bases, the platform's own keys."""


def allow(caller: Caller, action: Action, tenant: str | None = None) -> None:
    """Return if `caller` may do `action` to `tenant` (None: to what belongs to no tenant).

    Raises:
        ForbiddenError: the caller's scopes never reach this, whatever the tenant.
        NotFoundError: the tenant is not the caller's own. The platform reaches every tenant, but asks none.
    """
    is_platform = caller.tenant is None and Scope.PLATFORM in caller.scopes
    match action:
        case Action.ASK:
            has_scope = caller.tenant is not None and Scope.INFER in caller.scopes
        case Action.READ:
            has_scope = is_platform or not caller.scopes.isdisjoint({Scope.INFER, Scope.ADMIN})
        case Action.MANAGE:
            has_scope = is_platform or Scope.ADMIN in caller.scopes
        case Action.OPERATE:
            has_scope = is_platform
        case _:
            assert_never(action)
    if not has_scope:
        raise ForbiddenError(f"This key's scopes don't allow it: {_needed(action)}.")
    if is_platform or tenant is None or tenant == caller.tenant:
        return
    raise no_such_target() if action is Action.ASK else no_such_tenant(tenant)


def no_such_tenant(name: str) -> NotFoundError:
    """Missing, or not the caller's."""
    return NotFoundError(f"There is no tenant {quoted(name)}.", code="tenant_not_found")


def no_such_target() -> NotFoundError:
    """Nothing that a request may be answered with: one text for every reason, so that it tells nothing."""
    return NotFoundError("You have no adapter with this name, version or alias.", code="adapter_not_found")


def _needed(action: Action) -> str:
    match action:
        case Action.ASK:
            return "asking an adapter needs a tenant's key with the scope 'infer'"
        case Action.READ:
            return "this needs a key with the scope 'infer', 'admin' or 'platform'"
        case Action.MANAGE:
            return "this needs a key with the scope 'admin' or 'platform'"
        case Action.OPERATE:
            return "this needs a key with the scope 'platform'"
        case _:
            assert_never(action)
