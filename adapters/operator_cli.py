"""`lorikeet adapters tenants|keys|bases`: what an operator sets up before anything is published."""

from datetime import UTC, datetime, timedelta
from functools import partial
from operator import attrgetter
from typing import Annotated, Any, Final

import typer

from adapters.arguments import all_of
from adapters.callers import Caller, Scope, TenantLimits
from adapters.errors import InvalidError
from adapters.names import quoted
from adapters.printing import AsJson, Columns, print_one, print_rows
from adapters.settings import RegistrySettings

tenants = typer.Typer(no_args_is_help=True, help="The owners of adapters and keys.")
keys = typer.Typer(no_args_is_help=True, help="API keys: issued once, stored as a hash.")
bases = typer.Typer(no_args_is_help=True, help="The base models that the registry knows.")

_MAX_DIGITS: Final = 16
"""2^53 has as many."""

OptionalTenant = Annotated[
    str | None, typer.Option("--tenant", help="The tenant; without it, the platform's own keys.")
]

_TENANT: Final[Columns] = {"tenant": lambda tenant: tenant.name, "created": lambda tenant: tenant.created_at}
_LIMITS: Final[Columns] = {
    "tenant": lambda tenant: tenant.name,
    "adapters": lambda tenant: tenant.limits.max_adapters,
    "bytes": lambda tenant: tenant.limits.max_bytes,
    "requests a minute": lambda tenant: tenant.limits.requests_per_minute,
    "tokens a minute": lambda tenant: tenant.limits.tokens_per_minute,
    "requests at once": lambda tenant: tenant.limits.max_concurrency,
    "tokens a month": lambda tenant: tenant.limits.monthly_tokens,
    "weight": lambda tenant: tenant.limits.weight,
    "priority": lambda tenant: tenant.limits.priority,
}
_DEFAULT: Final[Columns] = {
    "tenant": lambda tenant: tenant.name,
    "default adapter": lambda tenant: tenant.default_adapter or "none: the base",
}
_KEY: Final[Columns] = {
    "id": lambda key: key.id,
    "name": lambda key: key.name,
    "begins": lambda key: f"{key.prefix}…",
    "scopes": lambda key: key.scopes,
    "created": lambda key: key.created_at,
    "expires": lambda key: key.expires_at,
    "revoked": lambda key: key.revoked_at,
}
_ISSUED: Final[Columns] = {
    "secret": lambda issued: issued.secret,
    "": lambda _: "Keep it now: it is not shown again.",
    "id": lambda issued: issued.key.id,
    "tenant": lambda issued: issued.key.tenant,
    "scopes": lambda issued: issued.key.scopes,
    "expires": lambda issued: issued.key.expires_at,
}
_BASE: Final[Columns] = {
    "base": lambda base: base.name,
    "fingerprint": lambda base: base.fingerprint,
    "parameters": lambda base: f"{base.parameter_count:,}",
    "linear layers": lambda base: len(base.modules),
    "path": lambda base: base.path,
}


def _limit(what: str) -> Any:  # noqa: ANN401  — as typer.Option
    return typer.Option(metavar="N|none", help=what)


@tenants.command("create", epilog="Example: lorikeet adapters tenants create acme")
def create_tenant(
    name: Annotated[str, typer.Argument(help="Its name, as it will stand in acme/support.")], *, as_json: AsJson = False
) -> None:
    """Add a tenant."""
    with RegistrySettings().open() as registry:
        print_one(registry.tenants.create(Caller.operator(), name), _TENANT, as_json=as_json)


@tenants.command("list", epilog="Example: lorikeet adapters tenants list --json")
def list_tenants(*, as_json: AsJson = False) -> None:
    """Every tenant."""
    with RegistrySettings().open() as registry:
        page = partial(registry.tenants.list, Caller.operator())
        found = list(all_of(lambda after, limit: page(after=after, limit=limit), attrgetter("name")))
    print_rows(found, _TENANT, as_json=as_json)


@tenants.command("limits", epilog="Example: lorikeet adapters tenants limits acme --max-adapters 100 --max-bytes none")
def limit_tenant(
    name: Annotated[str, typer.Argument(help="The tenant.")],
    *,
    max_adapters: Annotated[str | None, _limit("How many adapters it may have.")] = None,
    max_bytes: Annotated[str | None, _limit("Of the weights that were not collected yet.")] = None,
    requests_per_minute: Annotated[str | None, _limit("How many requests it may make.")] = None,
    tokens_per_minute: Annotated[str | None, _limit("Prompts and answers together.")] = None,
    max_concurrency: Annotated[str | None, _limit("Requests in flight.")] = None,
    monthly_tokens: Annotated[str | None, _limit("In a calendar month, UTC.")] = None,
    weight: Annotated[str | None, _limit("Its share beside others' when there is not enough for all.")] = None,
    priority: Annotated[str | None, _limit("Lower goes first, whatever the shares.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say how much a tenant may have and use; without options, show it. What is left out stays as it is."""
    asked = {
        "max_adapters": max_adapters,
        "max_bytes": max_bytes,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_concurrency": max_concurrency,
        "monthly_tokens": monthly_tokens,
        "weight": weight,
        "priority": priority,
    }
    said = {field: _number(text) for field, text in asked.items() if text is not None}
    operator = Caller.operator()
    with RegistrySettings().open() as registry:
        if said:
            tenant = registry.tenants.set_limits(operator, name, TenantLimits(**said), only=frozenset(said))
        else:
            tenant = registry.tenants.get(operator, name)
    print_one(tenant, _LIMITS, as_json=as_json)


@tenants.command("default", epilog="Example: lorikeet adapters tenants default acme support@canary")
def default_adapter(
    name: Annotated[str, typer.Argument(help="The tenant.")],
    adapter: Annotated[
        str | None, typer.Argument(metavar="NAME|none", help="As the tenant would name it; none: the base.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Say which adapter answers those requests of a tenant that name none; without one, show it."""
    operator = Caller.operator()
    with RegistrySettings().open() as registry:
        if adapter is None:
            tenant = registry.tenants.get(operator, name)
        else:
            tenant = registry.tenants.set_default(operator, name, None if adapter == "none" else adapter)
    print_one(tenant, _DEFAULT, as_json=as_json)


@keys.command("create", epilog="Example: lorikeet adapters keys create --tenant acme --scope infer --scope admin")
def create_key(
    *,
    tenant: Annotated[str | None, typer.Option(help="Whose key it is.")] = None,
    platform: Annotated[bool, typer.Option("--platform", help="A key that manages every tenant, instead.")] = False,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What a tenant's key may do; repeat it. Without it: infer.")
    ] = None,
    name: Annotated[str, typer.Option(help="A name to know it by.")] = "key",
    expires_days: Annotated[int | None, typer.Option(min=1, max=36500, help="Days until it ends.")] = None,
    as_json: AsJson = False,
) -> None:
    """Issue a key and print its secret, this once."""
    if platform == (tenant is not None):
        raise typer.BadParameter("Name either --tenant or --platform.")
    default = Scope.PLATFORM if platform else Scope.INFER
    expires_at = None if expires_days is None else datetime.now(UTC) + timedelta(days=expires_days)
    with RegistrySettings().open() as registry:
        issued = registry.keys.issue(
            Caller.operator(), tenant, name=name, scopes=frozenset(scope or [default]), expires_at=expires_at
        )
    print_one(issued, _ISSUED, as_json=as_json)


@keys.command("list", epilog="Example: lorikeet adapters keys list --tenant acme")
def list_keys(*, tenant: OptionalTenant = None, as_json: AsJson = False) -> None:
    """A tenant's keys, or the platform's own. Never a secret."""
    with RegistrySettings().open() as registry:
        page = partial(registry.keys.list, Caller.operator(), tenant)
        found = list(all_of(lambda after, limit: page(after=after, limit=limit), attrgetter("id")))
    print_rows(found, _KEY, as_json=as_json)


@keys.command("revoke", epilog="Example: lorikeet adapters keys revoke key-9f2ab4c81d3e5f60 --tenant acme")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="Its id, as `keys list` shows it.")],
    *,
    tenant: OptionalTenant = None,
    as_json: AsJson = False,
) -> None:
    """End a key now."""
    with RegistrySettings().open() as registry:
        print_one(registry.keys.revoke(Caller.operator(), tenant, key_id), _KEY, as_json=as_json)


@bases.command("list", epilog="Example: lorikeet adapters bases list")
def list_bases(*, as_json: AsJson = False) -> None:
    """Every base, the newest first. `lorikeet base` adds one."""
    with RegistrySettings().open() as registry:
        print_rows(registry.bases.list(Caller.operator()), _BASE, as_json=as_json)


def _number(text: str) -> int | None:
    if text == "none":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise InvalidError(f"{quoted(text)} is no limit: write a whole number, or none.", code="invalid_limits")
    return int(text)
