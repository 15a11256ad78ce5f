"""`lorikeet bench registry`: how fast the registry is with many adapters, and what an upload costs in memory.

Works on a registry of its own in a temporary folder. Its rows are written straight into the tables: ten thousand
publishes would measure the disk.
"""

import json
import random
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import quantiles
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from sqlalchemy import insert

from adapters.callers import Caller, Scope
from adapters.database import Database
from adapters.digests import CONFIG_FILE, WEIGHTS_FILE
from adapters.printing import AsJson, Columns, print_one
from adapters.registry import Registry, open_registry
from adapters.safetensors import Entry, write_header
from adapters.schema import ADAPTERS, ALIASES, BASES, PROMOTIONS, TENANTS, VERSIONS
from adapters.upload import folder_members
from adapters.values import Base, Module

RANK: Final = 16
WIDTH: Final = 4096
SMALL_MODULES: Final = 8
LARGE_MODULES: Final = 800
"""800 pairs of (16, 4096) in float32 are 420 MB; one tensor has 0.26 MB."""
FINGERPRINT: Final = f"sha256:{'0' * 64}"

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured; times are milliseconds at the median and the 99th percentile."""

    tenants: int
    adapters: int
    resolve_p50_ms: float
    resolve_p99_ms: float
    resolve_split_p50_ms: float
    authenticate_p50_ms: float
    list_p50_ms: float
    list_p99_ms: float
    promote_p50_ms: float
    upload_small_mb: float
    upload_small_peak_mb: float
    """How much more resident memory a process had at its peak while it published that."""
    upload_large_mb: float
    upload_large_peak_mb: float


_SHOWN: Final[Columns] = {
    "registry": lambda found: f"{found.adapters:,} adapters of {found.tenants:,} tenants",
    "resolve": lambda found: f"{found.resolve_p50_ms:.2f} ms (p99 {found.resolve_p99_ms:.2f})",
    "resolve a split": lambda found: f"{found.resolve_split_p50_ms:.2f} ms",
    "authenticate": lambda found: f"{found.authenticate_p50_ms:.2f} ms",
    "list page of 100": lambda found: f"{found.list_p50_ms:.2f} ms (p99 {found.list_p99_ms:.2f})",
    "promote": lambda found: f"{found.promote_p50_ms:.2f} ms",
    "small upload": lambda found: f"{found.upload_small_mb:.0f} MB, peak +{found.upload_small_peak_mb:.0f} MB",
    "large upload": lambda found: f"{found.upload_large_mb:.0f} MB, peak +{found.upload_large_peak_mb:.0f} MB",
}


@app.callback(invoke_without_command=True, epilog="Example: lorikeet bench registry --json")
def bench(
    *,
    tenants: Annotated[int, typer.Option(min=1)] = 1000,
    adapters: Annotated[int, typer.Option(min=1, help="Of all tenants together.")] = 10_000,
    calls: Annotated[int, typer.Option(min=100, help="Of each kind that are timed.")] = 2000,
    as_json: AsJson = False,
) -> None:
    """Time a registry of many adapters on SQLite, and weigh an upload."""
    with Console(stderr=True).status("beginning") as status:
        figures = measure(tenants, adapters, calls, say=status.update)
    print_one(figures, _SHOWN, as_json=as_json)


def measure(tenants: int, adapters: int, calls: int, *, say: Callable[[str], None]) -> Figures:
    """Fill a registry, time its calls, and publish a small and a large adapter, each in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="lorikeet-bench-") as temporary:
        folder = Path(temporary)
        with open_registry(folder / "home") as registry:
            say(f"entering {adapters} adapters of {tenants} tenants")
            with Database(f"sqlite:///{folder / 'home' / 'registry.db'}") as database:
                _fill(database, tenants, adapters)
            say(f"timing {calls} calls of each kind")
            timed = _time_calls(registry, tenants, adapters, calls)
        say("publishing a small and a large adapter")
        small, small_peak = _weigh(folder / "small", SMALL_MODULES)
        large, large_peak = _weigh(folder / "large", LARGE_MODULES)
    return Figures(
        tenants=tenants,
        adapters=adapters,
        **timed,
        upload_small_mb=small,
        upload_small_peak_mb=small_peak,
        upload_large_mb=large,
        upload_large_peak_mb=large_peak,
    )


# --- many adapters ----------------------------------------------------------------------------------------------------


def _fill(database: Database, tenants: int, adapters: int) -> None:
    now = datetime.now(UTC)
    base = {"name": "bench", "path": "", "modules": {}, "parameter_count": 0, "size_bytes": 0, "created_at": now}
    owners = [{"name": f"tenant-{number}", "created_at": now} for number in range(tenants)]
    with database.write() as connection:
        connection.execute(insert(BASES).values(fingerprint=FINGERPRINT, **base))
        connection.execute(insert(TENANTS), owners)
        for begin in range(0, adapters, 1000):
            numbers = range(begin, min(begin + 1000, adapters))
            for table, rows in (
                (ADAPTERS, [_adapter(number, tenants, now) for number in numbers]),
                (VERSIONS, [_version(number, which, now) for number in numbers for which in (1, 2)]),
                (PROMOTIONS, [_promotion(number, alias, now) for number in numbers for alias in _ALIASES]),
                (ALIASES, [_alias(number, alias, now) for number in numbers for alias in _ALIASES]),
            ):
                connection.execute(insert(table), rows)


_ALIASES: Final[dict[str, list[list[int]] | None]] = {"live": None, "canary": [[1, 90], [2, 10]]}
"""Each adapter's aliases with their splits."""


def _adapter(number: int, tenants: int, now: datetime) -> dict[str, Any]:
    return {"id": number + 1, "tenant_id": _owner(number, tenants) + 1, "name": f"adapter-{number}", "created_at": now}


def _owner(number: int, tenants: int) -> int:
    """Every tenth adapter is the first tenant's; the others are spread evenly."""
    return 0 if number % 10 == 0 else number % tenants


def _version(number: int, which: int, now: datetime) -> dict[str, Any]:
    manifest = {"digest": f"sha256:{number:032x}{which:032x}", "kind": "lora", "rank": RANK, "alpha": 1.0}
    manifest |= {"dtype": "F32", "tensor_count": 2, "size_bytes": 1, "base_fingerprint": FINGERPRINT}
    ids = {"id": 2 * number + which, "adapter_id": number + 1, "number": which, "digest": manifest["digest"]}
    made = {"created_at": now, "created_by": "bench", "warnings": [], "origin": {}}
    return {**ids, **made, "base_fingerprint": FINGERPRINT, "state": "ready", "manifest": manifest}


def _promotion(number: int, alias: str, now: datetime) -> dict[str, Any]:
    ids = {"id": _promotion_id(number, alias), "adapter_id": number + 1, "version_id": 2 * number + 1}
    return {**ids, "alias": alias, "split": _ALIASES[alias], "created_at": now, "created_by": "bench"}


def _alias(number: int, alias: str, now: datetime) -> dict[str, Any]:
    moved = {"promotion_id": _promotion_id(number, alias), "revision": 1, "moved_at": now, "moved_by": "bench"}
    return {"adapter_id": number + 1, "name": alias, **moved}


def _promotion_id(number: int, alias: str) -> int:
    return 2 * number + 1 + list(_ALIASES).index(alias)


def _time_calls(registry: Registry, tenants: int, adapters: int, calls: int) -> dict[str, float]:
    """Fields of `Figures`."""
    drawn = random.Random(0)  # noqa: S311  — the same calls each time
    numbers = [drawn.randrange(adapters) for _ in range(calls)]
    owners = [f"tenant-{_owner(number, tenants)}" for number in numbers]
    users = [Caller(owner, frozenset({Scope.INFER}), name="bench") for owner in owners]
    operator = Caller.operator()

    live = [partial(registry.resolve, user, f"adapter-{n}") for user, n in zip(users, numbers, strict=True)]
    split = [partial(registry.resolve, user, f"adapter-{n}@canary") for user, n in zip(users, numbers, strict=True)]
    issue = partial(registry.keys.issue, operator, name="bench", scopes=frozenset({Scope.INFER}))
    secrets = [issue(owner).secret for owner in owners[:50]]
    asked = [partial(registry.keys.authenticate, drawn.choice(secrets)) for _ in numbers]
    # Of the tenant that has a tenth of all adapters, pages of a hundred.
    pages = [partial(registry.adapters.list, operator, "tenant-0", after=f"adapter-{n}") for n in numbers[:500]]
    moves = [
        partial(registry.aliases.promote, operator, owner, f"adapter-{number}", 2)
        for owner, number in zip(owners[:200], numbers, strict=False)
    ]
    resolve_p50, resolve_p99 = _percentiles(live)
    list_p50, list_p99 = _percentiles(pages)
    return {
        "resolve_p50_ms": resolve_p50,
        "resolve_p99_ms": resolve_p99,
        "resolve_split_p50_ms": _percentiles(split)[0],
        "authenticate_p50_ms": _percentiles(asked)[0],
        "list_p50_ms": list_p50,
        "list_p99_ms": list_p99,
        "promote_p50_ms": _percentiles(moves)[0],
    }


def _percentiles(calls: Sequence[Callable[[], object]]) -> tuple[float, float]:
    """The median and the 99th percentile, in milliseconds."""
    took = []
    for call in calls:
        began = time.perf_counter()
        call()
        took.append((time.perf_counter() - began) * 1000)
    cuts = quantiles(took, n=100)
    return cuts[49], cuts[98]


# --- what an upload weighs --------------------------------------------------------------------------------------------


def _weigh(folder: Path, modules: int) -> tuple[float, float]:
    """An adapter's size, and the peak of resident memory above what the publishing process had before; in MB."""
    spawned = get_context("spawn")  # a fork would inherit our own peak
    with spawned.Pool(1) as pool:
        size_bytes, peak_bytes = pool.apply(_publish, (folder, modules))
    return size_bytes / 1e6, peak_bytes / 1e6


def _publish(folder: Path, modules: int) -> tuple[int, int]:
    base = _base(modules)
    size_bytes = _write_adapter(folder / "adapter", base)
    operator = Caller.operator()
    with open_registry(folder / "home") as registry:
        registry.tenants.create(operator, "bench")
        registry.bases.add(operator, base)
        before = _forget_peak()
        registry.versions.publish(operator, "bench", "big", folder_members(folder / "adapter"), base=base.fingerprint)
    return size_bytes, _peak_bytes() - before


def _forget_peak() -> int:
    """Begin a new peak of resident memory; how much is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _base(modules: int) -> Base:
    return Base(
        name="bench",
        fingerprint=FINGERPRINT,
        path="",
        modules={f"model.layers.{index}.self_attn.q_proj": Module(WIDTH, WIDTH) for index in range(modules)},
        chat_template_digest=None,
        parameter_count=0,
        size_bytes=0,
        created_at=datetime.now(UTC),
    )


def _write_adapter(folder: Path, base: Base) -> int:
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj"], "bias": "none"}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    raw = struct.pack("<f", 1e-3) * (RANK * WIDTH)
    entries: list[Entry] = []
    for module in base.modules:
        for side, shape in (("A", (RANK, WIDTH)), ("B", (WIDTH, RANK))):
            begin = len(raw) * len(entries)
            name = f"base_model.model.{module}.lora_{side}.weight"
            entries.append(Entry(name, "F32", shape, begin, begin + len(raw)))
    with (folder / WEIGHTS_FILE).open("wb") as file:
        write_header(file, entries)
        file.writelines(raw for _ in entries)
    return (folder / WEIGHTS_FILE).stat().st_size
