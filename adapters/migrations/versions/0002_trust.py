"""Splits, tags, notes, lineage, limits, grants, blobs, the audit, idempotency keys, uploads in parts, usage."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from adapters.schema import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tenants", sa.Column("limits", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("bases", sa.Column("tensors", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("bases", sa.Column("config", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("bases", sa.Column("is_model", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("versions", sa.Column("model_fingerprint", sa.String(100), nullable=True))
    op.create_index("ix_versions_model_fingerprint", "versions", ["model_fingerprint"])
    op.add_column("versions", sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("versions", sa.Column("parents", sa.JSON, nullable=False, server_default="[]"))
    op.add_column("versions", sa.Column("tags", sa.JSON, nullable=False, server_default="[]"))
    op.add_column("versions", sa.Column("note", sa.String(2000), nullable=False, server_default=""))
    op.add_column("versions", sa.Column("retired_at", UtcDateTime, nullable=True))
    op.add_column("promotions", sa.Column("split", sa.JSON, nullable=True))
    op.create_table(
        "grants",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("adapter_id", sa.Integer, nullable=False),
        sa.Column("grantee", sa.String(64), nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_grants"),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_grants_adapter_id"),
        sa.UniqueConstraint("adapter_id", "grantee", name="uq_grants_adapter_id_grantee"),
    )
    op.create_index("ix_grants_grantee", "grants", ["grantee"])
    op.create_table(
        "blobs",
        sa.Column("digest", sa.String(100), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("touched_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_blobs"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("actor_tenant", sa.String(64), nullable=True),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=True),
        sa.Column("subject", sa.String(300), nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.Column("request_id", sa.String(64), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_tenant", "audit", ["tenant"])
    op.create_table(
        "idempotency",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("scope", sa.String(64), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("asked_digest", sa.String(100), nullable=False),
        sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_idempotency"),
        sa.UniqueConstraint("scope", "key", "action", name="uq_idempotency_scope_key_action"),
    )
    op.create_index("ix_idempotency_created_at", "idempotency", ["created_at"])
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tenant_id", sa.Integer, nullable=False),
        sa.Column("adapter", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("touched_at", UtcDateTime, nullable=False),
        sa.Column("version_id", sa.Integer, nullable=True),
        sa.Column("is_new", sa.Boolean, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_uploads_tenant_id"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_uploads_version_id"),
    )
    op.create_index("ix_uploads_tenant_id", "uploads", ["tenant_id"])
    op.create_table(
        "upload_files",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("upload_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_upload_files"),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"], name="fk_upload_files_upload_id"),
        sa.UniqueConstraint("upload_id", "name", name="uq_upload_files_upload_id_name"),
    )
    op.create_table(
        "usage",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("adapter", sa.String(140), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("failed_requests", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_usage"),
        sa.UniqueConstraint(
            "tenant", "day", "adapter", "version", "key_id", name="uq_usage_tenant_day_adapter_version_key_id"
        ),
    )
    _fill()
    _sign()


def _fill() -> None:
    """What follows from the rows that are there: sizes, when a version was retired (at the latest), the blobs."""
    connection = op.get_bind()
    versions = sa.table(
        "versions",
        sa.column("id"),
        sa.column("digest"),
        sa.column("state"),
        sa.column("manifest", sa.JSON),
        sa.column("size_bytes"),
        sa.column("retired_at", UtcDateTime),
    )
    blobs = sa.table("blobs", sa.column("digest"), sa.column("size_bytes"), sa.column("touched_at", UtcDateTime))
    now = datetime.now(UTC)
    sizes = {}
    for row in connection.execute(sa.select(versions.c.id, versions.c.digest, versions.c.state, versions.c.manifest)):
        sizes[row.digest] = row.manifest["size_bytes"]
        connection.execute(
            sa.update(versions)
            .where(versions.c.id == row.id)
            .values(size_bytes=sizes[row.digest], retired_at=now if row.state == "retired" else None)
        )
    for digest, size_bytes in sizes.items():
        connection.execute(sa.insert(blobs).values(digest=digest, size_bytes=size_bytes, touched_at=now))


def _sign() -> None:
    """A tenant reads who published and who promoted: the names and ids of the platform's keys are not for it."""
    keys = sa.table("api_keys", sa.column("id", sa.String), sa.column("name", sa.String), sa.column("tenant_id"))
    platforms = sa.select(keys.c.name + " (" + keys.c.id + ")").where(keys.c.tenant_id.is_(None))
    for name, who in (("versions", "created_by"), ("promotions", "created_by"), ("aliases", "moved_by")):
        table = sa.table(name, sa.column(who, sa.String))
        op.execute(sa.update(table).where(table.c[who].in_(platforms)).values({who: "platform"}))
