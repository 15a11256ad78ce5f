"""Runs the revisions on the connection that the registry opened. Knows no URL and reads no ini file."""

from alembic import context

from adapters.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
