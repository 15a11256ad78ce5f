"""API keys: 256 random bits that only their holder knows. Invariant: the database never sees a secret, only its sha256.

A plain hash is enough: nobody guesses 256 bits, so there is nothing that a slow hash would slow down.
"""

import builtins
import hashlib
import re
import secrets
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Row, insert, select, update

from adapters.access import Action, allow
from adapters.database import Database
from adapters.errors import InvalidError, KeyRejectedError, NotFoundError
from adapters.lookups import find_tenant
from adapters.names import quoted
from adapters.schema import API_KEYS, TENANTS
from adapters.values import ApiKey, Caller, IssuedKey, Scope

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

        Raises:
            InvalidError: `invalid_scopes`, `invalid_key_name` or `invalid_expiry`.
        """
        _allow(caller, tenant)
        created_at = datetime.now(UTC)
        _require_scopes(tenant, scopes)
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
        with self._database.write() as connection:
            connection.execute(
                insert(API_KEYS).values(
                    id=key.id,
                    tenant_id=None if tenant is None else find_tenant(connection, tenant),
                    name=key.name,
                    prefix=key.prefix,
                    secret_sha256=_sha256(secret),
                    scopes=sorted(scopes),
                    created_at=key.created_at,
                    expires_at=key.expires_at,
                )
            )
        return IssuedKey(key, secret)

    def list(self, caller: Caller, tenant: str | None) -> builtins.list[ApiKey]:
        """The tenant's keys, or the platform's own; oldest first, revoked and expired ones too."""
        _allow(caller, tenant)
        with self._database.read() as connection:
            tenant_id = None if tenant is None else find_tenant(connection, tenant)
            rows = connection.execute(
                select(API_KEYS).where(API_KEYS.c.tenant_id == tenant_id).order_by(API_KEYS.c.created_at, API_KEYS.c.id)
            )
            return [_as_key(row, tenant) for row in rows]

    def revoke(self, caller: Caller, tenant: str | None, key_id: str) -> ApiKey:
        """End a key now. A key that is revoked already stays as it is. Raises NotFoundError `key_not_found`."""
        _allow(caller, tenant)
        with self._database.write() as connection:
            tenant_id = None if tenant is None else find_tenant(connection, tenant)
            is_it = (API_KEYS.c.id == key_id) & (API_KEYS.c.tenant_id == tenant_id)
            if key_id.isascii() and key_id.isprintable():
                connection.execute(
                    update(API_KEYS).where(is_it, API_KEYS.c.revoked_at.is_(None)).values(revoked_at=datetime.now(UTC))
                )
                row = connection.execute(select(API_KEYS).where(is_it)).one_or_none()
                if row is not None:
                    return _as_key(row, tenant)
        raise NotFoundError(f"There is no key {quoted(key_id)} here.", code="key_not_found")

    def authenticate(self, secret: str) -> Caller:
        """Who holds `secret`. Raises KeyRejectedError, the same for a wrong, a revoked and an expired key."""
        # What can't be a secret is not even hashed: a header may be a megabyte long.
        if _SECRET.fullmatch(secret):
            with self._database.read() as connection:
                row = connection.execute(
                    select(API_KEYS, TENANTS.c.name.label("tenant"))
                    .outerjoin(TENANTS, TENANTS.c.id == API_KEYS.c.tenant_id)
                    .where(API_KEYS.c.secret_sha256 == _sha256(secret))
                ).one_or_none()
            if row is not None and _is_valid(_as_key(row, row.tenant)):
                scopes = frozenset(Scope(scope) for scope in row.scopes)
                return Caller(tenant=row.tenant, scopes=scopes, name=f"{row.name} ({row.id})")
        raise KeyRejectedError("The API key is wrong, revoked or expired.")


def _allow(caller: Caller, tenant: str | None) -> None:
    allow(caller, Action.OPERATE if tenant is None else Action.MANAGE, tenant)


def _require_scopes(tenant: str | None, scopes: frozenset[Scope]) -> None:
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
