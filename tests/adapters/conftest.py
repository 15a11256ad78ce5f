import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters import Base, Caller, Published, Registry, Scope, folder_members, open_registry
from tests.builders import make_adapter_folder, make_base

Publish = Callable[..., Published]


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
    operator = Caller.operator()
    with open_registry(home) as opened:
        opened.tenants.create(operator, "acme")
        opened.tenants.create(operator, "globex")
        opened.bases.add(operator, make_base())
    return home


@pytest.fixture
def registry(prepared_home: Path, home: Path) -> Iterator[Registry]:
    """With the tenants acme and globex, and the base that `base` is."""
    shutil.copytree(prepared_home, home)
    with open_registry(home) as opened:
        yield opened


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
