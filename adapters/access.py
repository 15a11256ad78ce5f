"""Who may do what to whose: the only place where tenancy is decided, on the whole caller.

Invariant: for a caller of one tenant, another's tenant and one that does not exist are the same answer, byte for byte.
"""

from enum import Enum, auto
from typing import assert_never

from adapters.callers import Caller, Scope
from adapters.errors import ForbiddenError, NotFoundError
from adapters.names import quoted


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


def allow(caller: Caller, action: Action, tenant: str | None = None, *, is_granted: bool = False) -> None:
    """Return if `caller` may do `action` to `tenant` (None: to what belongs to no tenant).

    `is_granted`: what it is about, the tenant has granted to the caller's; that is a permission to ask it.

    Raises:
        ForbiddenError: the caller's scopes never reach this, whatever the tenant.
        NotFoundError: the tenant is not the caller's own. The platform reaches every tenant, but asks none.
    """
    is_platform = _is_platform(caller)
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
    if is_platform or tenant is None or tenant == caller.tenant or (is_granted and action is Action.ASK):
        return
    raise no_such_target() if action is Action.ASK else no_such_tenant(tenant)


def may_build_on(caller: Caller, tenant: str, *, is_granted: bool) -> bool:
    """Whether a model of `tenant` is a base for `caller`, too: it is its own, or granted to it, or it is the platform.

    Only for who may manage at all: `allow` says so first.
    """
    return _is_platform(caller) or caller.tenant == tenant or is_granted


def no_such_tenant(name: str) -> NotFoundError:
    """Missing, or not the caller's."""
    return NotFoundError(f"There is no tenant {quoted(name)}.", code="tenant_not_found")


def no_such_target() -> NotFoundError:
    """Nothing that a request may be answered with: one text for every reason, so that it tells nothing."""
    return NotFoundError("You have no adapter with this name, version or alias.", code="adapter_not_found")


def no_such_version(number: object) -> NotFoundError:
    """No version has it, or none could."""
    is_short = type(number) is int and abs(number) < 10**18
    which = f"no version {number}" if is_short else "no version of that number"
    return NotFoundError(f"The adapter has {which}.", code="version_not_found")


def _is_platform(caller: Caller) -> bool:
    return caller.tenant is None and Scope.PLATFORM in caller.scopes


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
