"""One real server for the session: vLLM on the CPU with a tiny random model in float32, so that equal means equal."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from safetensors import safe_open

from adapters import Base, Caller, Limits, Module, Registry, Scope, fingerprint_base, folder_members, open_registry
from server.app import create_app
from server.engine.environment import prepare_environment
from server.engine.protocol import Engine
from server.settings import ServerSettings
from tests.builders import make_adapter_folder, make_base
from tests.live_server import LiveServer

SLOTS, HOST_SLOTS, MAX_RANK = 2, 8, 16
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OPERATOR = Caller.operator()


@dataclass(frozen=True)
class RealServer:
    """The running server, and the same registry and engine seen from inside."""

    live: LiveServer
    registry: Registry
    engine: Engine
    base: Base
    acme: str
    """A key of the tenant acme that may ask and manage; `globex` is another tenant's."""
    globex: str
    platform: str

    @property
    def url(self) -> str:
        """Without a trailing slash."""
        return self.live.base_url

    def client(self, key: str) -> httpx.Client:
        """An HTTP client with that key."""
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {key}"}, timeout=120)

    def publish(self, tenant: str, adapter: str, folder: Path) -> int:
        """Put an adapter's folder into the registry, make it live, and say its number."""
        published = self.registry.versions.publish(
            OPERATOR, tenant, adapter, folder_members(folder), base=self.base.fingerprint
        )
        self.registry.aliases.promote(OPERATOR, tenant, adapter, published.version.number)
        return published.version.number


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A checkpoint on disk, described as `lorikeet base` would."""
    from tests.tiny_model import make_tiny_checkpoint

    folder = make_tiny_checkpoint(tmp_path_factory.mktemp("base"))
    with safe_open(folder / "model.safetensors", "pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys() if "_proj" in name}  # noqa: SIM118
    modules = {name.removesuffix(".weight"): Module(shape[1], shape[0]) for name, shape in shapes.items()}
    found = fingerprint_base(folder)
    return replace(
        make_base("tiny"),
        fingerprint=found.fingerprint,
        path=str(folder),
        modules=modules,
        chat_template_digest=found.chat_template_digest,
        created_at=datetime.now(UTC),
    )


@pytest.fixture(scope="session")
def strong_adapters(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters of different ranks, each strong enough to change every answer."""
    folder = tmp_path_factory.mktemp("adapters")
    return [
        make_adapter_folder(folder / f"rank-{rank}", tiny_base, rank, modules=ALL_LINEAR, seed=rank, strength=1.0)
        for rank in (8, 4, 16)
    ]


@pytest.fixture(scope="session")
def real_server(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """The whole server on the real engine."""
    prepare_environment()
    from server.engine.vllm import VllmEngine

    engine = VllmEngine(
        model=Path(tiny_base.path),
        base_name=tiny_base.name,
        slots=SLOTS,
        host_slots=HOST_SLOTS,
        max_rank=MAX_RANK,
        target_modules=ALL_LINEAR,
        max_model_len=1024,
        kv_cache_memory_bytes=1 << 27,
        dtype="float32",
        tool_call_parser="hermes",
    )
    home = tmp_path_factory.mktemp("home")
    settings = ServerSettings(max_loras=SLOTS, max_cpu_loras=HOST_SLOTS)
    with open_registry(home, limits=Limits(max_rank=MAX_RANK)) as registry:
        registry.bases.add(OPERATOR, tiny_base)
        for tenant in ("acme", "globex"):
            registry.tenants.create(OPERATOR, tenant)
        both = frozenset({Scope.INFER, Scope.ADMIN})
        acme, globex = (
            registry.keys.issue(OPERATOR, tenant, name="test", scopes=both).secret for tenant in ("acme", "globex")
        )
        platform = registry.keys.issue(OPERATOR, None, name="test", scopes=frozenset({Scope.PLATFORM})).secret
        with LiveServer(lambda: create_app(settings, registry, engine, base=tiny_base, secret=b"s" * 32)) as live:
            yield RealServer(live, registry, engine, tiny_base, acme, globex, platform)


@pytest.fixture(scope="session")
def server(real_server: RealServer, strong_adapters: list[Path]) -> RealServer:
    """With an adapter each for two tenants."""
    real_server.publish("acme", "support", strong_adapters[0])
    real_server.publish("globex", "support", strong_adapters[1])
    return real_server
