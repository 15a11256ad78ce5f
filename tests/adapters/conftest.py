import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from adapters import Base, Caller, Published, Registry, Scope, folder_members, open_registry
from tests.builders import make_adapter_folder, make_base
from tests.postgres import Postgres

Publish = Callable[..., Published]
Execute = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture
def operator() -> Caller:
    return Caller.operator()


@pytest.fixture
def admin() -> Caller:
    return Caller(tenant="acme", scopes=frozenset({Scope.ADMIN}), name="acme's admin")


@pytest.fixture
def user() -> Caller:
    return Caller(tenant="acme", scopes=frozenset({Scope.INFER}), name="acme's user")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def base() -> Base:
    return make_base()


@pytest.fixture(scope="session")
def prepared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: a migration for each of 500 tests would be most of their time."""
    home = tmp_path_factory.mktemp("prepared")
    _prepare(home)
    return home


@pytest.fixture(scope="session")
def prepared_postgresql(postgres: Postgres, migrated_postgresql: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same in PostgreSQL: the name of a database to make others from."""
    name = postgres.create_database("prepared", template=migrated_postgresql)
    _prepare(tmp_path_factory.mktemp("prepared"), postgres.url(name))
    return name


def _prepare(home: Path, database_url: str | None = None) -> None:
    operator = Caller.operator()
    with open_registry(home, database_url) as opened:
        opened.tenants.create(operator, "acme")
        opened.tenants.create(operator, "globex")
        opened.bases.add(operator, make_base())


@pytest.fixture
def database_url(database: str, request: pytest.FixtureRequest, home: Path) -> str | None:
    """Where `registry` keeps its rows: whoever opens it again says `open_registry(home, database_url)`."""
    if database == "sqlite":
        shutil.copytree(request.getfixturevalue("prepared_home"), home)
        return None
    url: str = request.getfixturevalue("new_postgresql")(request.getfixturevalue("prepared_postgresql"))
    return url


@pytest.fixture
def registry(home: Path, database_url: str | None) -> Iterator[Registry]:
    """With the tenants acme and globex, and the base that `base` is."""
    with open_registry(home, database_url) as opened:
        yield opened


@pytest.fixture
def execute(home: Path, database_url: str | None) -> Execute:
    """Run one statement on the database of `registry`, past the program."""

    def run(statement: str) -> list[tuple[Any, ...]]:
        engine = create_engine(database_url or f"sqlite:///{home / 'registry.db'}")
        with engine.begin() as connection:
            result = connection.execute(text(statement))
            rows = [tuple(row) for row in result] if result.returns_rows else []
        engine.dispose()
        return rows

    return run


@pytest.fixture
def publish(registry: Registry, base: Base, operator: Caller, tmp_path: Path) -> Publish:
    """Publish a generated adapter: `publish("support", seed=1)`. Other seeds are other bytes."""

    def published(adapter: str = "support", *, tenant: str = "acme", seed: int = 0, **options: Any) -> Published:
        folder = tmp_path / "adapters" / str(seed)
        if not folder.exists():
            make_adapter_folder(folder, base, seed=seed)
        return registry.versions.publish(
            operator, tenant, adapter, folder_members(folder), base=base.fingerprint, **options
        )

    return published
