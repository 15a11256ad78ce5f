"""A tenant's default adapter, pins, shadows, and more of what was used: cached tokens, aborts, times."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tenants", sa.Column("default_adapter", sa.String(200), nullable=True))
    op.add_column("adapters", sa.Column("is_pinned", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("aliases", sa.Column("shadow", sa.JSON(none_as_null=True), nullable=True))
    for name in ("aborted_requests", "cached_tokens", "answered_requests", "first_token_ms", "request_ms"):
        op.add_column("usage", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
