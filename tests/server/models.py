"""Whole models in a registry, and a server that was started on one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from starlette.types import ASGIApp

from adapters import Base, Kind, Module, Registry, Version, folder_members
from server.app import create_app
from server.engine.fake import FakeEngine
from tests.builders import make_base_of, make_model_folder
from tests.live_server import LiveServer
from tests.server.world import OPERATOR, World, make_settings


def add_base(registry: Registry, folder: Path, name: str = "whole") -> Base:
    """A base that models can be made from, and adapters for."""
    base = make_base_of(make_model_folder(folder), name)
    modules = {
        tensor.removesuffix(".weight"): Module(shape[1], shape[0])
        for tensor, shape in base.tensors.items()
        if "_proj" in tensor
    }
    return registry.bases.add(OPERATOR, replace(base, modules=modules))


def publish_models(registry: Registry, folder: Path, count: int = 2) -> list[Version]:
    """So many versions of acme/model, made from the base `whole`."""
    return [
        registry.versions.publish(
            *(OPERATOR, "acme", "model", folder_members(make_model_folder(folder / f"model-{seed}", seed=seed))),
            base="whole",
            kind=Kind.MERGED,
        ).version
        for seed in range(1, count + 1)
    ]


@contextmanager
def serving(world: World, reference: str) -> Iterator[World]:
    """Another server on the registry of `world`, started on a model as `lorikeet serve --base` does."""
    settings = make_settings()
    with world.registry.hold_base(OPERATOR, reference) as base:
        engine = FakeEngine(base.name, slots=settings.max_loras, host_slots=settings.max_cpu_loras)

        def make_app() -> ASGIApp:
            return create_app(settings, world.registry, engine, base=base, secret=b"secret" * 6)

        with LiveServer(make_app) as live:
            yield World(world.registry, base, engine, live, world.keys, world.folder)
