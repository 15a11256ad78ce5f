"""Brings a database to this program's revision. Invariant: what it does not recognise, it leaves as it found it."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from adapters.errors import StorageError

_LOCK: Final = 0x10121CE37
"""Ours among PostgreSQL's advisory locks: two programs that open a new database migrate it one after the other."""


def migrate(connection: Connection) -> None:
    """Run the missing revisions in the transaction that `connection` is in; on SQLite it must hold the write lock.

    Raises:
        StorageError: `database_newer`, if a newer program wrote it; `database_foreign`, if it isn't a registry at all.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection

    # 1 what is there
    script = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    if current == script.get_current_head():
        return
    if current is None and inspect(connection).get_table_names():
        raise StorageError(
            "The database holds another program's tables; give the registry a database of its own.",
            code="database_foreign",
        )
    known = {revision.revision for revision in script.walk_revisions()}
    if current is not None and current not in known:
        raise StorageError(
            f"The registry's database is at revision {current}, which this version of Lorikeet does not know: "
            "a newer one wrote it. Install that version again, or restore a backup.",
            code="database_newer",
        )

    # 2 what is missing
    command.upgrade(config, "head")
