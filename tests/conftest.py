"""What holds for all tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from adapters import open_registry
from tests.postgres import Postgres, why_there_is_none

# Machines are shared: how long an example takes says nothing here. A failure prints the line that repeats it.
# The parent is hypothesis' own choice: with CI set, the same examples in every run.
settings.register_profile(
    "lorikeet",
    parent=settings(),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("lorikeet")


@pytest.fixture(scope="session", autouse=True)
def _is_supervised() -> Iterator[None]:
    """`lorikeet serve` must not become a supervisor inside a test's own process: it is as if systemd ran it."""
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("INVOCATION_ID", "tests")
        variables.delenv("SYSTEMD_EXEC_PID", raising=False)
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One for all tests; each has a database of its own. For those that stop it there is `own_postgres`."""
    missing = why_there_is_none()
    if missing:
        pytest.skip(missing)
    with Postgres() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """One that the test may stop, kill and pause."""
    missing = why_there_is_none()
    if missing:
        pytest.skip(missing)
    with Postgres(is_durable=True) as server:
        yield server


@pytest.fixture(scope="session")
def migrated_postgresql(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database with the newest tables and no rows, to make others from."""
    name = postgres.create_database("migrated")
    open_registry(tmp_path_factory.mktemp("migrated"), postgres.url(name)).close()
    return name


@pytest.fixture
def new_postgresql(postgres: Postgres) -> Iterator[Callable[[str], str]]:
    """`new_postgresql(template)` gives the URL of a database that is gone after the test."""

    def make(template: str = "template0") -> str:
        name = postgres.create_database(template=template)
        made.callback(postgres.drop_database, name)
        return postgres.url(name)

    with ExitStack() as made:
        yield make


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """Whoever asks for it, even through another fixture, runs on both."""
    kind: str = request.param
    return kind


@pytest.fixture
def empty_url(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new, empty database."""
    if database == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    url: str = request.getfixturevalue("new_postgresql")()
    return url
