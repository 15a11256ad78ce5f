"""What comes over the wire in the admin API: bodies and queries. Strict: an unknown field is refused."""

import re
from datetime import date
from typing import Annotated, Self

from fastapi import Depends, Request
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from adapters import Kind, Scope, UsageField
from server.errors import BadRequestError

LIVE = "live"
"""The alias that a bare name means."""
DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
Number = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""Of a version, a move or a row: as far as SQL's integers go."""
Exactly = Annotated[Number, Field(strict=True)]
"""A number in JSON, where "3" and 3.0 are none."""
Limit = Annotated[int, Field(strict=True, ge=0, lt=2**53)]


def _day(written: str) -> date:
    if not DAY.fullmatch(written):
        raise ValueError("write a day as YYYY-MM-DD")
    return date.fromisoformat(written)


Day = Annotated[date, BeforeValidator(_day)]
"""Pydantic alone would take 86400 for a day in 1970."""


class Body(BaseModel):
    """A request's body, or its query."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- bodies -----------------------------------------------------------------------------------------------------------


class NewTenant(Body):
    """POST /tenants."""

    name: str


class LimitsPatch(Body):
    """Limits; null is none."""

    max_adapters: Limit | None = None
    max_bytes: Limit | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    max_concurrency: Limit | None = None
    monthly_tokens: Limit | None = None
    weight: Annotated[Limit, Field(ge=1)] | None = None
    priority: Limit | None = None


class TenantPatch(Body):
    """PATCH /tenants/{tenant}: what it does not name stays as it is."""

    limits: LimitsPatch = LimitsPatch()
    default_adapter: str | None = None
    """Null: the base."""

    @model_validator(mode="after")
    def _require_any(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("say 'limits', 'default_adapter' or both")
        return self


class NewPlatformKey(Body):
    """POST /keys."""

    name: str
    expires_at: AwareDatetime | None = None


class NewKey(NewPlatformKey):
    """POST /tenants/{tenant}/keys."""

    scopes: Annotated[frozenset[Scope], Field(min_length=1)] = frozenset({Scope.INFER})


class ArmIn(Body):
    """A version's share."""

    version: Exactly
    weight: Annotated[int, Field(strict=True, ge=1, le=10_000)]


class Pointed(Body):
    """PUT …/aliases/{alias}: at one version, or split between several."""

    version: Exactly | None = None
    split: Annotated[tuple[ArmIn, ...], Field(min_length=1, max_length=8)] | None = None

    @model_validator(mode="after")
    def _require_one(self) -> Self:
        if (self.version is None) == (self.split is None):
            raise ValueError("say either 'version' or 'split'")
        return self


class ShadowIn(Body):
    """PUT …/aliases/{alias}/shadow."""

    version: Exactly
    percent: Annotated[int, Field(strict=True, ge=1, le=100)] = 100


class VersionPatch(Body):
    """PATCH …/versions/{n}: what it does not name stays as it is."""

    tags: tuple[str, ...] = ()
    note: str = ""

    @model_validator(mode="after")
    def _require_any(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("say 'tags', 'note' or both")
        return self


async def _refuse_body(request: Request) -> None:
    if (await request.body()).strip() not in {b"", b"{}", b"null"}:
        raise BadRequestError("This path takes no body.")


NO_BODY = Depends(_refuse_body)
"""For a route that acts without one: a field that somebody expects to matter is not passed over."""

# --- queries ----------------------------------------------------------------------------------------------------------


class PageAfter(Body):
    """A list by name: `after` is the `next` of the page before."""

    limit: int = 100
    after: str | None = None


class PageBefore(Body):
    """A list with the newest first: `before` is the `next` of the page before."""

    limit: int = 100
    before: Number | None = None


class AuditQuery(PageBefore):
    """GET /audit."""

    tenant: str | None = None


class UsageQuery(PageAfter):
    """GET /usage: what was used from the day `since` to the day `until`, both included."""

    tenant: str | None = None
    adapter: str | None = None
    since: Day | None = None
    until: Day | None = None
    by: Annotated[tuple[UsageField, ...], Field(min_length=1)] = tuple(UsageField)


class RollbackQuery(Body):
    """POST …/rollback."""

    alias: str = LIVE


class UploadQuery(Body):
    """POST …/versions."""

    kind: Kind = Kind.LORA
    base: str | None = None
    """What it was trained on; none: the base that is served."""
    parents: Annotated[tuple[str, ...], Field(max_length=32)] = ()
    promote: bool = False
