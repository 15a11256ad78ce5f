"""The tables, as they are after the newest revision in migrations/. A test holds the two together.

Rows of versions and promotions are never deleted and, save a version's state and warnings, never changed.
"""

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime in and out, also on SQLite, which keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC; naive where the database knows no zones."""
        if value is None:
            return None
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Back to an aware UTC datetime."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


METADATA: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _column(name: str, kind: Any, *constraints: Any, **options: Any) -> Column[Any]:  # noqa: ANN401  — as SQLAlchemy's
    return Column(name, kind, *constraints, **{"nullable": False, **options})


TENANTS: Final = Table(
    "tenants",
    METADATA,
    _column("id", Integer, primary_key=True),
    _column("name", String(64), unique=True),
    _column("created_at", UtcDateTime),
)

API_KEYS: Final = Table(
    "api_keys",
    METADATA,
    _column("id", String(64), primary_key=True),
    _column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=True, index=True),
    _column("name", String(100)),
    _column("prefix", String(16)),
    _column("secret_sha256", String(64), unique=True),
    _column("scopes", JSON),
    _column("created_at", UtcDateTime),
    _column("expires_at", UtcDateTime, nullable=True),
    _column("revoked_at", UtcDateTime, nullable=True),
)

BASES: Final = Table(
    "bases",
    METADATA,
    _column("id", Integer, primary_key=True),
    _column("fingerprint", String(100), unique=True),
    _column("name", String(200), index=True),
    _column("path", String(4096)),
    _column("modules", JSON),
    _column("chat_template_digest", String(100), nullable=True),
    _column("parameter_count", BigInteger),
    _column("size_bytes", BigInteger),
    _column("created_at", UtcDateTime),
)

ADAPTERS: Final = Table(
    "adapters",
    METADATA,
    _column("id", Integer, primary_key=True),
    _column("tenant_id", Integer, ForeignKey("tenants.id")),
    _column("name", String(64)),
    _column("created_at", UtcDateTime),
    UniqueConstraint("tenant_id", "name"),
)

VERSIONS: Final = Table(
    "versions",
    METADATA,
    _column("id", Integer, primary_key=True),
    _column("adapter_id", Integer, ForeignKey("adapters.id")),
    _column("number", Integer),
    _column("digest", String(100), index=True),
    _column("base_fingerprint", String(100), ForeignKey("bases.fingerprint")),
    _column("state", String(16)),
    _column("manifest", JSON),
    _column("warnings", JSON),
    _column("origin", JSON),
    _column("created_at", UtcDateTime),
    _column("created_by", String(200)),
    UniqueConstraint("adapter_id", "number"),
    UniqueConstraint("adapter_id", "digest"),
    sqlite_autoincrement=True,
)

PROMOTIONS: Final = Table(
    "promotions",
    METADATA,
    _column("id", Integer, primary_key=True),
    _column("adapter_id", Integer, ForeignKey("adapters.id"), index=True),
    _column("alias", String(64)),
    _column("version_id", Integer, ForeignKey("versions.id")),
    # What the alias stood on before: the stack that a rollback walks down.
    _column("replaced_id", Integer, ForeignKey("promotions.id"), nullable=True),
    _column("created_at", UtcDateTime),
    _column("created_by", String(200)),
    sqlite_autoincrement=True,
)

ALIASES: Final = Table(
    "aliases",
    METADATA,
    _column("id", Integer, primary_key=True),
    _column("adapter_id", Integer, ForeignKey("adapters.id")),
    _column("name", String(64)),
    _column("promotion_id", Integer, ForeignKey("promotions.id")),
    _column("revision", Integer),
    _column("moved_at", UtcDateTime),
    _column("moved_by", String(200)),
    UniqueConstraint("adapter_id", "name"),
)
