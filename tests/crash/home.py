"""A registry's home and its database, as often as the campaign needs the same ones anew."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import sleep

from adapters import Registry, open_registry
from tests.postgres import Postgres


@dataclass(frozen=True)
class Home:
    """Where one registry lives."""

    path: Path
    url: str | None = None
    """None: SQLite, inside `path`."""
    postgres: Postgres | None = None
    database: str = ""

    @property
    def kind(self) -> str:
        """`sqlite` or `postgresql`."""
        return "sqlite" if self.postgres is None else "postgresql"

    def open(self) -> Registry:
        """The registry, opened as after any start."""
        return open_registry(self.path, self.url)

    @property
    def blobs(self) -> Path:
        """The folder of the blobs."""
        return self.path / "store" / "sha256"

    @contextmanager
    def copied(self, path: Path) -> Iterator["Home"]:
        """The same once more, until the block ends. Nobody may have this one open."""
        shutil.copytree(self.path, path)
        if self.postgres is None:
            home = Home(path)
        else:
            database = self.postgres.create_database(template=self.database)
            home = Home(path, self.postgres.url(database), self.postgres, database)
        try:
            yield home
        finally:
            shutil.rmtree(path)
            if self.postgres is not None:
                self.postgres.drop_database(home.database)

    def settle(self) -> None:
        """Wait until the database has noticed that its client is gone, and has undone or done what was under way."""
        if self.postgres is None:
            return
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
        while self.postgres.execute("postgres", query, self.database)[0][0]:
            sleep(0.002)

    def damage(self) -> list[str]:
        """What the database's own check finds wrong."""
        if self.postgres is not None:
            return []
        with closing(sqlite3.connect(self.path / "registry.db")) as connection:
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
            found += [f"a foreign key of {row[0]}" for row in connection.execute("PRAGMA foreign_key_check")]
        return [line for line in found if line != "ok"]


def new_home(path: Path, postgres: Postgres | None) -> Home:
    """One that is empty."""
    if postgres is None:
        return Home(path)
    database = postgres.create_database()
    return Home(path, postgres.url(database), postgres, database)
