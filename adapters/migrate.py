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


def is_current(connection: Connection) -> bool:
    """Whether there is nothing to migrate. Only reads.

    Raises:
        StorageError: `database_newer`, if a newer program wrote it; `database_foreign`, if it isn't a registry at all.
    """
    script = ScriptDirectory.from_config(_config(connection))
    current = MigrationContext.configure(connection).get_current_revision()
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
    return current == script.get_current_head()


def migrate(connection: Connection) -> None:
    """Run the missing revisions in the transaction that `connection` is in; on SQLite it must hold the write lock.

    Raises:
        StorageError: as `is_current` does.
    """
    if connection.dialect.name == "postgresql":
        _wait_for_other_programs(connection)
    # Asked under the lock: another program may have just done it.
    if not is_current(connection):
        command.upgrade(_config(connection), "head")


def _wait_for_other_programs(connection: Connection) -> None:
    """For as long as they migrate. What the migration itself then locks, it waits for no longer than any write does."""
    limit = connection.execute(text("SELECT current_setting('lock_timeout')")).scalar_one()
    connection.execute(text("SET LOCAL lock_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    connection.execute(text("SELECT set_config('lock_timeout', :limit, true)"), {"limit": limit})


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
