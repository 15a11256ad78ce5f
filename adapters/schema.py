"""The tables, as they are after the newest revision in migrations/. A test holds the two together.

Rows of versions, promotions and the audit are never deleted. Of a version, its state, warnings, tags and note change.
"""

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
    false,
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
    _column("limits", JSON, server_default="{}"),
    # What a request that names nothing asks: as the tenant itself would write it.
    _column("default_adapter", String(200), nullable=True),
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
    _column("tensors", JSON, server_default="{}"),
    _column("config", JSON, server_default="{}"),
    # Known only as what versions are, under their names: nobody has entered it.
    _column("is_model", Boolean, server_default=false()),
)

ADAPTERS: Final = Table(
    "adapters",
    METADATA,
    _column("id", Integer, primary_key=True),
    _column("tenant_id", Integer, ForeignKey("tenants.id")),
    _column("name", String(64)),
    _column("created_at", UtcDateTime),
    # Whether servers keep what `live` means resident.
    _column("is_pinned", Boolean, server_default=false()),
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
    # The base that a model is. (SQLite adds no foreign key to a table that is there.)
    _column("model_fingerprint", String(100), nullable=True, index=True),
    _column("state", String(16)),
    _column("manifest", JSON),
    _column("warnings", JSON),
    _column("origin", JSON),
    _column("created_at", UtcDateTime),
    _column("created_by", String(200)),
    _column("size_bytes", BigInteger, server_default="0"),
    _column("parents", JSON, server_default="[]"),
    _column("tags", JSON, server_default="[]"),
    _column("note", String(2000), server_default=""),
    _column("retired_at", UtcDateTime, nullable=True),
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
    # The version; of a split, the heaviest.
    _column("version_id", Integer, ForeignKey("versions.id")),
    # [[number, weight], …] by number, if several versions share the traffic.
    _column("split", JSON, nullable=True),
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
    # {"version": number, "percent": share}: who gets a copy of so much of the traffic, and answers nobody.
    _column("shadow", JSON(none_as_null=True), nullable=True),
    UniqueConstraint("adapter_id", "name"),
)

GRANTS: Final = Table(
    "grants",
    METADATA,
    _column("id", Integer, primary_key=True),
    _column("adapter_id", Integer, ForeignKey("adapters.id")),
    # A name, not a row: a tenant's admin who grants must not learn which other tenants there are.
    _column("grantee", String(64), index=True),
    _column("created_at", UtcDateTime),
    _column("created_by", String(200)),
    UniqueConstraint("adapter_id", "grantee"),
)

BLOBS: Final = Table(
    "blobs",
    METADATA,
    _column("digest", String(100), primary_key=True),
    _column("size_bytes", BigInteger),
    # When it was last published or let go: the grace period of `collect` begins here.
    _column("touched_at", UtcDateTime),
)

AUDIT: Final = Table(
    "audit",
    METADATA,
    _column("id", Integer, primary_key=True),
    _column("at", UtcDateTime),
    _column("actor", String(200)),
    _column("actor_tenant", String(64), nullable=True),
    _column("action", String(64)),
    _column("tenant", String(64), nullable=True, index=True),
    _column("subject", String(300)),
    _column("detail", JSON),
    _column("request_id", String(64), nullable=True),
    sqlite_autoincrement=True,
)

IDEMPOTENCY: Final = Table(
    "idempotency",
    METADATA,
    _column("id", Integer, primary_key=True),
    # The caller's tenant; empty for the platform.
    _column("scope", String(64)),
    _column("key", String(255)),
    _column("action", String(64)),
    _column("asked_digest", String(100)),
    _column("result", JSON(none_as_null=True), nullable=True),
    _column("created_at", UtcDateTime, index=True),
    UniqueConstraint("scope", "key", "action"),
)

UPLOADS: Final = Table(
    "uploads",
    METADATA,
    _column("id", String(64), primary_key=True),
    _column("tenant_id", Integer, ForeignKey("tenants.id"), index=True),
    _column("adapter", String(64)),
    _column("kind", String(16)),
    _column("created_at", UtcDateTime),
    _column("created_by", String(200)),
    # When the last part came.
    _column("touched_at", UtcDateTime),
    # The version that it became, and whether that was new.
    _column("version_id", Integer, ForeignKey("versions.id"), nullable=True),
    _column("is_new", Boolean, nullable=True),
)

UPLOAD_FILES: Final = Table(
    "upload_files",
    METADATA,
    _column("id", Integer, primary_key=True),
    _column("upload_id", String(64), ForeignKey("uploads.id")),
    _column("name", String(200)),
    # What was acknowledged: a disk may hold more of the file, and nobody knows what.
    _column("size_bytes", BigInteger),
    UniqueConstraint("upload_id", "name"),
)

USAGE: Final = Table(
    "usage",
    METADATA,
    _column("id", Integer, primary_key=True),
    # UTC's.
    _column("day", Date),
    # Who asked: names, not rows, for what was used stays as it was.
    _column("tenant", String(64)),
    # Another tenant's with its owner before it; `base`; empty if the request named nothing that is served.
    _column("adapter", String(140)),
    # 0: no version.
    _column("version", Integer),
    _column("key_id", String(64)),
    _column("requests", BigInteger),
    _column("failed_requests", BigInteger),
    _column("prompt_tokens", BigInteger),
    _column("completion_tokens", BigInteger),
    # Those whose clients hung up before the end.
    _column("aborted_requests", BigInteger, server_default="0"),
    # Of the prompt's tokens, those that the prefix cache had.
    _column("cached_tokens", BigInteger, server_default="0"),
    # Those that got a first token, and how long it took them all together.
    _column("answered_requests", BigInteger, server_default="0"),
    _column("first_token_ms", BigInteger, server_default="0"),
    _column("request_ms", BigInteger, server_default="0"),
    # The tenant first: what one has used this month is looked up while it waits for an answer.
    UniqueConstraint("tenant", "day", "adapter", "version", "key_id"),
)
