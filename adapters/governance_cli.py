"""`lorikeet adapters grants`, `audit` and `usage`: who may ask another's, who did what, who used how much."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Annotated, Any, Final

import typer

from adapters.arguments import AdapterName, adapter_of, all_of
from adapters.callers import Caller
from adapters.printing import AsJson, Columns, print_one, print_rows
from adapters.settings import RegistrySettings
from adapters.usage import UsageField, UsageRow

grants = typer.Typer(no_args_is_help=True, help="Adapters that other tenants may ask, too.")
audit = typer.Typer()
usage = typer.Typer()

Grantee = Annotated[str, typer.Argument(metavar="TENANT", help="The other tenant.")]

_GRANT: Final[Columns] = {
    "adapter": lambda grant: f"{grant.tenant}/{grant.adapter}",
    "granted to": lambda grant: grant.grantee,
    "since": lambda grant: grant.created_at,
    "by": lambda grant: grant.created_by,
}
_AUDIT: Final[Columns] = {
    "action": lambda row: row.action,
    "tenant": lambda row: row.tenant,
    "subject": lambda row: row.subject,
    "actor": lambda row: row.actor,
    "at": lambda row: row.at,
    "detail": lambda row: {name: value for name, value in row.detail.items() if value is not None},
}
_USAGE: Final[Columns] = {
    "day": lambda row: row.day,
    "tenant": lambda row: row.tenant,
    "adapter": lambda row: f"{row.adapter or ''}@{row.version}" if row.version else row.adapter,
    "key": lambda row: row.key_id,
    "requests": lambda row: row.requests,
    # Several in each: no more columns fit into 80 characters.
    "failed / left": lambda row: f"{row.failed_requests} / {row.aborted_requests}",
    "prompt (cached) / answer": lambda row: f"{row.prompt_tokens} ({row.cached_tokens}) / {row.completion_tokens}",
    "ms first / last": lambda row: f"{_whole(row.mean_first_token_ms)} / {_whole(row.mean_request_ms)}",
}


@dataclass(frozen=True, slots=True)
class _Usage(UsageRow):
    """With its means, where there is something to take one of."""

    mean_first_token_ms: float | None = None
    mean_request_ms: float | None = None

    @classmethod
    def of(cls, row: UsageRow) -> "_Usage":
        """As it is printed."""
        first, whole = row.mean_first_token_ms, row.mean_request_ms
        return cls(**asdict(row), mean_first_token_ms=first, mean_request_ms=whole)


def _whole(mean: float | None) -> str:
    return "–" if mean is None else f"{mean:.0f}"


def _day(written: str) -> date:
    with suppress(ValueError):
        day = date.fromisoformat(written)
        if str(day) == written:  # unlike 20260101 and 2026-W01-1
            return day
    raise typer.BadParameter(f"{written!r} is no day: write YYYY-MM-DD.")


def _day_option(what: str) -> Any:  # noqa: ANN401  — Typer's
    return typer.Option(metavar="YYYY-MM-DD", parser=_day, help=what)


@grants.command("give", epilog="Example: lorikeet adapters grants give acme/support globex")
def give_grant(name: AdapterName, grantee: Grantee, *, as_json: AsJson = False) -> None:
    """Let another tenant ask an adapter, as TENANT/NAME."""
    with RegistrySettings().open() as registry:
        grant = registry.grants.give(Caller.operator(), *adapter_of(name), grantee)
    print_one(grant, _GRANT, as_json=as_json)


@grants.command("take", epilog="Example: lorikeet adapters grants take acme/support globex")
def take_grant(name: AdapterName, grantee: Grantee, *, as_json: AsJson = False) -> None:
    """End a grant: the other tenant's next request is refused."""
    with RegistrySettings().open() as registry:
        grant = registry.grants.take(Caller.operator(), *adapter_of(name), grantee)
    print_one(grant, _GRANT, as_json=as_json)


@grants.command("list", epilog="Example: lorikeet adapters grants list acme/support")
def list_grants(name: AdapterName, *, as_json: AsJson = False) -> None:
    """Whom an adapter is granted to."""
    with RegistrySettings().open() as registry:
        page = partial(registry.grants.list, Caller.operator(), *adapter_of(name))
        found = list(all_of(lambda after, limit: page(after=after, limit=limit), attrgetter("grantee")))
    print_rows(found, _GRANT, as_json=as_json)


@audit.command("audit", epilog="Example: lorikeet adapters audit --tenant acme --limit 20")
def list_audit(
    *,
    tenant: Annotated[str | None, typer.Option(help="Only what was done to this tenant's things.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many rows.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Who did what, the newest first."""
    with RegistrySettings().open() as registry:
        page = partial(registry.audit, Caller.operator(), tenant=tenant)
        rows = all_of(lambda before, most: page(before=before, limit=min(most, limit)), attrgetter("id"))
        found = list(islice(rows, limit))
    print_rows(found, _AUDIT, as_json=as_json)


@usage.command("usage", epilog="Example: lorikeet adapters usage --tenant acme --since 2026-01-01 --by adapter")
def list_usage(
    *,
    tenant: Annotated[str | None, typer.Option(help="Only what this tenant used.")] = None,
    since: Annotated[date | None, _day_option("The first day (UTC). Else the first of the last one's month.")] = None,
    until: Annotated[date | None, _day_option("The last day. Else today.")] = None,
    by: Annotated[list[UsageField] | None, typer.Option(help="Told apart by this alone; repeat it.")] = None,
    as_json: AsJson = False,
) -> None:
    """What was used: requests, tokens and mean times by day, tenant, adapter, version and key."""
    last = until or datetime.now(UTC).date()
    first = since or last.replace(day=1)
    with RegistrySettings().open() as registry:
        page = partial(
            registry.usage.read, Caller.operator(), tenant=tenant, since=first, until=last, by=by or tuple(UsageField)
        )
        found = [
            _Usage.of(row) for row in all_of(lambda after, limit: page(after=after, limit=limit), attrgetter("cursor"))
        ]
    print_rows(found, _USAGE, as_json=as_json)
