"""Several processes with several threads each, all at one adapter at once, and what each was told, and when."""

import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import monotonic_ns
from typing import Any, Final

from adapters import Caller, NotFoundError, Registry, RegistryError, Scope, StorageError, folder_members, open_registry
from adapters.lookups import select_aliases
from adapters.schema import ALIASES, VERSIONS
from tests.builders import make_base

OPERATOR: Final = Caller.operator()
USER: Final = Caller(tenant="acme", scopes=frozenset({Scope.INFER}), name="user")
ADAPTER: Final = ("acme", "support")
SEEDS: Final = range(6)
"""Of the bytes that are published, again and again."""


@dataclass(frozen=True)
class Did:
    """One call: when it began and ended on the machine's clock, and what came of it."""

    kind: str
    asked: Any
    began_ns: int
    ended_ns: int
    told: Any
    """The result; None if it was refused."""
    code: str | None = None
    """Of the refusal."""
    is_unknown: bool = False
    """The storage failed: it may have been done or not."""


def race(
    home: Path, database_url: str | None, uploads: Path, *, processes: int, threads: int, rounds: int, seed: int
) -> list[Did]:
    """All that was done. Each thread draws `rounds` calls of its own."""
    runner = partial(_run, home, database_url, uploads, threads, rounds)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return [
            did for part in pool.map(runner, [seed * 1000 + process for process in range(processes)]) for did in part
        ]


def _run(home: Path, database_url: str | None, uploads: Path, threads: int, rounds: int, seed: int) -> list[Did]:
    with open_registry(home, database_url) as registry, ThreadPoolExecutor(threads) as pool:
        parts = pool.map(partial(_run_thread, registry, uploads, rounds), [seed * 100 + n for n in range(threads)])
        return [did for part in parts for did in part]


def _run_thread(registry: Registry, uploads: Path, rounds: int, seed: int) -> list[Did]:
    draw = random.Random(seed)
    kinds = draw.choices(list(_HOW), weights=list(_WEIGHTS), k=rounds)
    return [_do(registry, uploads, kind, draw) for kind in kinds]


def _do(registry: Registry, uploads: Path, kind: str, draw: random.Random) -> Did:
    asked = _asked(registry, kind, draw)
    began = monotonic_ns()
    try:
        told = _HOW[kind](registry, uploads, asked)
    except StorageError as error:
        return Did(kind, asked, began, monotonic_ns(), None, error.code, is_unknown=True)
    except RegistryError as error:
        return Did(kind, asked, began, monotonic_ns(), None, error.code)
    return Did(kind, asked, began, monotonic_ns(), told)


def _asked(registry: Registry, kind: str, draw: random.Random) -> Any:
    newest = registry.versions.list(OPERATOR, *ADAPTER, limit=1)[0].number
    number = draw.randint(1, newest)
    if kind == "compare and set":
        live = registry.adapters.get(OPERATOR, *ADAPTER).live
        return number, live.revision if live else 0
    return draw.choice(SEEDS) if kind == "publish" else number


def _publish(registry: Registry, uploads: Path, seed: int) -> Any:
    members = folder_members(uploads / str(seed))
    return registry.versions.publish(OPERATOR, *ADAPTER, members, base=make_base().fingerprint, origin={"seed": seed})


def _compare_and_set(registry: Registry, _: Path, asked: tuple[int, int]) -> Any:
    return registry.aliases.promote(OPERATOR, *ADAPTER, asked[0], expected_revision=asked[1])


def _resolve(registry: Registry, _: Path, _asked: int) -> Any:
    """The number; its files are whole, or were collected since."""
    target = registry.resolve(USER, "support")
    with suppress(NotFoundError), registry.hold(target.digest):
        pass
    return target.number


def _look(registry: Registry, _: Path, _asked: int) -> Any:
    """The alias, and the state of its version, in one moment."""
    query = select_aliases().add_columns(VERSIONS.c.state).where(ALIASES.c.name == "live")
    with registry._database.read() as connection:
        row = connection.execute(query).one()
        return row.revision, row.number, row.state


def _collect(registry: Registry, _: Path, _asked: int) -> Any:
    return list(registry.collect(OPERATOR, grace_seconds=0))


_HOW: Final[Mapping[str, Callable[[Registry, Path, Any], Any]]] = {
    "promote": lambda registry, _, number: registry.aliases.promote(OPERATOR, *ADAPTER, number),
    "compare and set": _compare_and_set,
    "roll back": lambda registry, *_: registry.aliases.rollback(OPERATOR, *ADAPTER),
    "retire": lambda registry, _, number: registry.versions.retire(OPERATOR, *ADAPTER, number),
    "restore": lambda registry, _, number: registry.versions.restore(OPERATOR, *ADAPTER, number),
    "publish": _publish,
    "collect": _collect,
    "resolve": _resolve,
    "look": _look,
}
_WEIGHTS: Final[Sequence[int]] = (4, 3, 2, 4, 3, 4, 3, 4, 2)
