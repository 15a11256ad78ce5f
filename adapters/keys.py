"""API keys: 256 random bits that only their holder knows. Invariant: the database never sees a secret, only its sha256.

A plain hash is enough: nobody guesses 256 bits, so there is nothing that a slow hash would slow down.
"""

import builtins
import hashlib
import re
import secrets
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select, update

from adapters.access import Action, allow
from adapters.callers import ApiKey, Caller, IssuedKey, Scope
from adapters.changes import Change, Done, change
from adapters.database import Database
from adapters.errors import InvalidError, KeyRejectedError, NotFoundError
from adapters.lookups import DEFAULT_PAGE, as_limits, find_tenant, require_page
from adapters.names import quoted
from adapters.schema import API_KEYS, TENANTS

_SECRET: Final = re.compile(r"lk-[A-Za-z0-9_-]{43}")
_PREFIX_LENGTH: Final = 8
_NAME_LENGTH: Final = 100
_TENANT_SCOPES: Final = frozenset({Scope.INFER, Scope.ADMIN})


class Keys:
    """`registry.keys`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def issue(
        self,
        caller: Caller,
        tenant: str | None,
        *,
        name: str,
        scopes: frozenset[Scope],
        expires_at: datetime | None = None,
    ) -> IssuedKey:
        """Make a key for `tenant`, or for the platform if it is None. The secret is in the answer and nowhere else.

        A call that is repeated under its idempotency key gives the same key without the secret.

        Raises:
            InvalidError: `invalid_scopes`, `invalid_key_name` or `invalid_expiry`.
        """
        _allow(caller, tenant)
        created_at = datetime.now(UTC)
        require_scopes(tenant, scopes)
        _require_key_name(name)
        _require_expiry(expires_at, created_at)
        secret = f"lk-{secrets.token_urlsafe(32)}"
        key = ApiKey(
            id=f"key-{secrets.token_hex(8)}",
            tenant=tenant,
            name=name,
            prefix=secret[:_PREFIX_LENGTH],
            scopes=scopes,
            created_at=created_at,
            expires_at=expires_at.astimezone(UTC) if expires_at else None,
            revoked_at=None,
        )
        asked = {"name": name, "scopes": sorted(scopes), "expires_at": key.expires_at and key.expires_at.isoformat()}
        what = Change(caller, "key.issue", tenant, name, asked)
        return change(self._database, what, partial(_issue, IssuedKey(key, secret)), IssuedKey, hidden="secret")

    def list(
        self, caller: Caller, tenant: str | None, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> builtins.list[ApiKey]:
        """The tenant's keys, or the platform's own; oldest first, revoked and expired ones too.

        At most `limit`, those that come after the key with the id `after`.

        Raises:
            InvalidError: `invalid_limit`; `invalid_cursor`: there is no such key here.
            NotFoundError: `tenant_not_found`.
        """
        _allow(caller, tenant)
        require_page(limit)
        with self._database.read() as connection:
            page = select(API_KEYS).where(API_KEYS.c.tenant_id == _tenant_id(connection, tenant))
            if after is not None:
                last = connection.execute(page.where(API_KEYS.c.id == after)).one_or_none() if _is_id(after) else None
                if last is None:
                    raise InvalidError("A page goes on after a key of the page before.", code="invalid_cursor")
                same = (API_KEYS.c.created_at == last.created_at) & (API_KEYS.c.id > last.id)
                page = page.where((API_KEYS.c.created_at > last.created_at) | same)
            rows = connection.execute(page.order_by(API_KEYS.c.created_at, API_KEYS.c.id).limit(limit))
            return [_as_key(row, tenant) for row in rows]

    def revoke(self, caller: Caller, tenant: str | None, key_id: str) -> ApiKey:
        """End a key now. A key that is revoked already stays as it is. Raises NotFoundError `key_not_found`."""
        _allow(caller, tenant)
        what = Change(caller, "key.revoke", tenant, quoted(key_id))
        return change(self._database, what, partial(_revoke, tenant, key_id), ApiKey)

    def authenticate(self, secret: str) -> Caller:
        """Who holds `secret`. Raises KeyRejectedError, the same for a wrong, a revoked and an expired key."""
        # What can't be a secret is not even hashed: a header may be a megabyte long.
        if _SECRET.fullmatch(secret):
            with self._database.read() as connection:
                row = connection.execute(
                    select(API_KEYS, TENANTS.c.name.label("tenant"), TENANTS.c.limits, TENANTS.c.default_adapter)
                    .outerjoin(TENANTS, TENANTS.c.id == API_KEYS.c.tenant_id)
                    .where(API_KEYS.c.secret_sha256 == _sha256(secret))
                ).one_or_none()
            if row is not None and _is_valid(_as_key(row, row.tenant)):
                scopes = frozenset(Scope(scope) for scope in row.scopes)
                name, limits = f"{row.name} ({row.id})", as_limits(row.limits or {})
                return Caller(
                    tenant=row.tenant,
                    scopes=scopes,
                    name=name,
                    key_id=row.id,
                    limits=limits,
                    default_adapter=row.default_adapter,
                )
        raise KeyRejectedError("The API key is wrong, revoked or expired.")


def _issue(issued: IssuedKey, connection: Connection) -> Done[IssuedKey]:
    key = issued.key
    connection.execute(
        insert(API_KEYS).values(
            id=key.id,
            tenant_id=_tenant_id(connection, key.tenant),
            name=key.name,
            prefix=key.prefix,
            secret_sha256=_sha256(issued.secret),
            scopes=sorted(key.scopes),
            created_at=key.created_at,
            expires_at=key.expires_at,
        )
    )
    return Done(issued, subject=key.id)


def _revoke(tenant: str | None, key_id: str, connection: Connection) -> Done[ApiKey]:
    is_it = (API_KEYS.c.id == key_id) & (API_KEYS.c.tenant_id == _tenant_id(connection, tenant))
    if _is_id(key_id):
        ended = update(API_KEYS).where(is_it, API_KEYS.c.revoked_at.is_(None)).values(revoked_at=datetime.now(UTC))
        is_changed = bool(connection.execute(ended).rowcount)
        row = connection.execute(select(API_KEYS).where(is_it)).one_or_none()
        if row is not None:
            return Done(_as_key(row, tenant), is_changed, subject=row.id)
    raise NotFoundError(f"There is no key {quoted(key_id)} here.", code="key_not_found")


def _is_id(text: str) -> bool:
    """Whether a key's id may be so; PostgreSQL refuses some texts with an error of its own."""
    return text.isascii() and text.isprintable()


def _tenant_id(connection: Connection, tenant: str | None) -> int | None:
    return None if tenant is None else find_tenant(connection, tenant)


def _allow(caller: Caller, tenant: str | None) -> None:
    allow(caller, Action.OPERATE if tenant is None else Action.MANAGE, tenant)


def require_scopes(tenant: str | None, scopes: frozenset[Scope]) -> None:
    """Raise InvalidError `invalid_scopes` unless a key of `tenant` (None: of the platform) may have these."""
    if tenant is None and scopes != {Scope.PLATFORM}:
        raise InvalidError("A key without a tenant has the scope 'platform' and no other.", code="invalid_scopes")
    if tenant is not None and not (scopes and scopes <= _TENANT_SCOPES):
        raise InvalidError("A tenant's key has the scope 'infer', 'admin' or both.", code="invalid_scopes")


def _require_key_name(name: str) -> None:
    if not (0 < len(name) <= _NAME_LENGTH and name.isprintable() and name.strip() == name):
        raise InvalidError(
            f"{quoted(name)} can't name a key: use 1 to {_NAME_LENGTH} printable characters.", code="invalid_key_name"
        )


def _require_expiry(expires_at: datetime | None, created_at: datetime) -> None:
    if expires_at is None:
        return
    try:
        is_possible = expires_at.tzinfo is not None and expires_at.astimezone(UTC) > created_at
    except OverflowError:  # a year's end west of Greenwich: in UTC, it is year 10000
        is_possible = False
    if not is_possible:
        raise InvalidError(
            "A key's expiry must have a time zone and lie in the future, before the year 10000 in UTC.",
            code="invalid_expiry",
        )


def _is_valid(key: ApiKey) -> bool:
    return key.revoked_at is None and (key.expires_at is None or datetime.now(UTC) < key.expires_at)


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("ascii")).hexdigest()


def _as_key(row: Row[Any], tenant: str | None) -> ApiKey:
    return ApiKey(
        id=row.id,
        tenant=tenant,
        name=row.name,
        prefix=row.prefix,
        scopes=frozenset(Scope(scope) for scope in row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
