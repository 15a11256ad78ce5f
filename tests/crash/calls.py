"""The calls that the campaign's client makes, and what it is told of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy import update

from adapters import (
    Arm,
    Caller,
    ProbeVerdict,
    Registry,
    RegistryError,
    Scope,
    StorageError,
    Version,
    folder_members,
)
from adapters.schema import BLOBS
from tests.builders import make_base

OPERATOR: Final = Caller.operator()
BASE: Final = make_base(layers=1)
TENANTS: Final = ("acme", "globex")
GRACE_SECONDS: Final = 3600
_ANY: Final = TypeAdapter(Any)
_UNTOLD: Final = frozenset({"id", "created_at", "moved_at", "at", "retired_at", "revoked_at", "secret", "prefix"})
"""Other at each telling: moments, and what is drawn from the operating system's entropy."""


@dataclass(frozen=True)
class Call:
    """One call of a story."""

    kind: str
    tenant: str
    adapter: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    """The idempotency key."""


def perform(registry: Registry, uploads: Path, call: Call, number: int | None = None) -> Any:
    """Make the call, the story's `number`-th; its result as the registry gives it. Raises what the registry raises."""
    caller = replace(OPERATOR, idempotency_key=call.key, request_id=None if number is None else f"call-{number}")
    return _HOW[call.kind](registry, caller, call, uploads)


def tell(registry: Registry, uploads: Path, call: Call, number: int) -> tuple[Any, Any]:
    """Make the call, and give what its caller is told, as JSON, and its result.

    A refusal is an answer like any other. What failed (StorageError) is none: it passes.
    """
    try:
        result = perform(registry, uploads, call, number)
    except StorageError:
        raise
    except RegistryError as error:
        return {"refused": error.code}, None
    return told(result), result


def told(value: Any) -> Any:
    """A value of the registry as JSON, without what is other at each telling."""
    return _without(_ANY.dump_python(value, mode="json"))


def all_versions(registry: Registry) -> list[Version]:
    """Every version of the story's tenants, the oldest of each adapter first."""
    return [
        version
        for tenant in TENANTS
        for adapter in registry.adapters.list(OPERATOR, tenant)
        for version in reversed(registry.versions.list(OPERATOR, tenant, adapter.name))
    ]


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(inner) for name, inner in value.items() if name not in _UNTOLD}
    return [_without(inner) for inner in value] if isinstance(value, list) else value


def _publish(registry: Registry, caller: Caller, call: Call, uploads: Path) -> Any:
    seed = call.arguments["seed"]
    members = folder_members(uploads / str(seed))
    return registry.versions.publish(
        caller, call.tenant, call.adapter, members, base=BASE.fingerprint, origin={"seed": seed}
    )


def _promote(registry: Registry, caller: Caller, call: Call, _uploads: Path) -> Any:
    arms = [Arm(*arm) for arm in call.arguments["to"]]
    revision = call.arguments.get("expected_revision")
    return registry.aliases.promote(
        caller, call.tenant, call.adapter, arms, alias=call.arguments["alias"], expected_revision=revision
    )


def _probe(registry: Registry, caller: Caller, call: Call, _uploads: Path) -> Any:
    version = registry.versions.get(caller, call.tenant, call.adapter, call.arguments["number"])
    return registry.versions.record_probe(caller, version.id, ProbeVerdict(is_accepted=True))


def _issue(registry: Registry, caller: Caller, call: Call, _uploads: Path) -> Any:
    scopes = frozenset({Scope.INFER})
    return registry.keys.issue(caller, call.tenant, name=call.arguments["name"], scopes=scopes)


def _revoke(registry: Registry, caller: Caller, call: Call, _uploads: Path) -> Any:
    keys = registry.keys.list(OPERATOR, call.tenant, limit=1000)
    key = next(key for key in keys if key.name == call.arguments["name"])
    return registry.keys.revoke(caller, call.tenant, key.id)


def _limit(registry: Registry, caller: Caller, call: Call, _uploads: Path) -> Any:
    limits = replace(registry.tenants.get(OPERATOR, call.tenant).limits, **call.arguments)
    return registry.tenants.set_limits(caller, call.tenant, limits)


def _default(registry: Registry, caller: Caller, call: Call, _uploads: Path) -> Any:
    return registry.tenants.set_default(caller, call.tenant, call.arguments["name"])


def _collect(registry: Registry, caller: Caller, _call: Call, _uploads: Path) -> Any:
    return list(registry.collect(caller, grace_seconds=GRACE_SECONDS))


def _age(registry: Registry, _caller: Caller, _call: Call, _uploads: Path) -> Any:
    """Time passes: every blob's grace period is over."""
    with registry._database.write() as connection:
        connection.execute(update(BLOBS).values(touched_at=datetime.now(UTC) - timedelta(seconds=2 * GRACE_SECONDS)))


def _on_adapter(method: str, registry: Registry, caller: Caller, call: Call, _uploads: Path) -> Any:
    """`versions.retire` and its like: the arguments are the method's own."""
    part, _, name = method.partition(".")
    do: Callable[..., Any] = getattr(getattr(registry, part), name)
    return do(caller, call.tenant, call.adapter, **call.arguments)


_HOW: Final[Mapping[str, Callable[[Registry, Caller, Call, Path], Any]]] = {
    "publish": _publish,
    "publish again": _publish,
    "publish equal": _publish,
    "publish scratch": _publish,
    "promote": _promote,
    "split": _promote,
    "compare and set": _promote,
    "roll back": partial(_on_adapter, "aliases.rollback"),
    "retire": partial(_on_adapter, "versions.retire"),
    "retire scratch": partial(_on_adapter, "versions.retire"),
    "restore": partial(_on_adapter, "versions.restore"),
    "annotate": partial(_on_adapter, "versions.annotate"),
    "give": partial(_on_adapter, "grants.give"),
    "take": partial(_on_adapter, "grants.take"),
    "pin": partial(_on_adapter, "adapters.pin"),
    "unpin": partial(_on_adapter, "adapters.unpin"),
    "probe": _probe,
    "issue": _issue,
    "revoke": _revoke,
    "limit": _limit,
    "default": _default,
    "age": _age,
    "collect": _collect,
}
