"""The real app on a real uvicorn, over a real registry; only the engine is a fake."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp

from adapters import Scope, open_registry
from server.app import create_app
from server.engine.fake import FakeEngine
from tests.builders import make_adapter_folder, make_base
from tests.live_server import LiveServer
from tests.server.world import OPERATOR, World, make_settings


@pytest.fixture
def database_url(database: str, request: pytest.FixtureRequest) -> str | None:
    """A new database with the newest tables in it; None is SQLite in the home."""
    if database == "sqlite":
        return None
    url: str = request.getfixturevalue("new_postgresql")(request.getfixturevalue("migrated_postgresql"))
    return url


@pytest.fixture
def make_world(tmp_path: Path, database_url: str | None) -> Iterator[Callable[..., World]]:
    """Start a server; it stops with the test."""

    def make(*, tracer: Any = None, second: socket.socket | None = None, http: Any = "auto", **overrides: Any) -> World:
        registry = opened.enter_context(open_registry(tmp_path / "home", database_url))
        base = registry.bases.add(OPERATOR, make_base())
        for tenant in ("acme", "zoo"):
            registry.tenants.create(OPERATOR, tenant)
        keys = {
            name: registry.keys.issue(OPERATOR, tenant, name=name, scopes=frozenset({scope})).secret
            for name, tenant, scope in (
                ("acme", "acme", Scope.INFER),
                ("acme-admin", "acme", Scope.ADMIN),
                ("zoo", "zoo", Scope.INFER),
                ("zoo-admin", "zoo", Scope.ADMIN),
                ("platform", None, Scope.PLATFORM),
            )
        }
        settings = make_settings(**overrides)
        engine = FakeEngine(base.name, slots=settings.max_loras, host_slots=settings.max_cpu_loras)

        def make_app() -> ASGIApp:
            return create_app(settings, registry, engine, base=base, secret=b"secret" * 6, tracer=tracer)

        live = opened.enter_context(LiveServer(make_app, second=second, http=http))
        folder = tmp_path / "folders"
        folder.mkdir()
        return World(registry, base, engine, live, keys, folder)

    with ExitStack() as opened:
        yield make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A server with tenants acme and zoo, and no adapter yet."""
    return make_world()


@pytest.fixture
def adapter_folder(tmp_path: Path) -> Path:
    """One adapter's files."""
    return make_adapter_folder(tmp_path / "adapter", make_base())
