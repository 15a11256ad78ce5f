"""A story: a seeded list of calls, written by carrying it out once, so that its calls fit what there is by then.

It is then told again and again, each time to a registry that dies at another point.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapters import Registry, Version, VersionState
from tests.builders import make_adapter_folder
from tests.crash.calls import BASE, OPERATOR, TENANTS, Call, all_versions, perform

SEEDS: Final = range(5)
"""Of the uploads that a story draws from."""
LAST_SEED: Final = 7
"""Of the uploads that are there: those after `SEEDS` are published once, at a story's end and after it."""
KINDS: Final = (
    *("publish", "publish", "publish again", "publish equal", "promote", "promote", "split", "compare and set"),
    *("roll back", "retire", "restore", "annotate", "issue", "revoke", "give", "take", "probe", "limit", "default"),
    *("pin", "unpin"),
)
ENDING: Final = (
    *("publish scratch", "publish scratch", "retire scratch", "retire scratch", "age", "collect"),
    *("restore", "publish again", "restore", "publish", "promote"),
)
_KEYLESS: Final = frozenset({"age", "collect", "probe"})


@dataclass(frozen=True)
class Place:
    """What the next call is chosen from."""

    registry: Registry
    draw: random.Random
    number: int
    """The call's, in its story."""
    versions: list[Version]

    @property
    def servable(self) -> list[Version]:
        return [version for version in self.versions if version.state.is_servable]


def make_uploads(folder: Path) -> Path:
    """A small adapter for each seed."""
    for seed in range(LAST_SEED + 1):
        make_adapter_folder(folder / str(seed), BASE, rank=2, modules=("q_proj",), seed=seed)
    return folder


def prepare(registry: Registry, uploads: Path) -> None:
    """Where every story begins: equal bytes here and there, a split, a retired version, a key, a grant."""
    for tenant in TENANTS:
        registry.tenants.create(OPERATOR, tenant)
    registry.bases.add(OPERATOR, BASE)
    for call in (
        Call("publish", "acme", "support", {"seed": 0}),
        Call("publish", "acme", "support", {"seed": 1}),
        Call("publish", "acme", "support", {"seed": 2}),
        Call("publish", "acme", "sales", {"seed": 0}),
        Call("publish", "globex", "support", {"seed": 1}),
        Call("promote", "acme", "support", {"to": [[1, 1]], "alias": "live"}),
        Call("promote", "acme", "support", {"to": [[2, 1]], "alias": "live"}),
        Call("split", "acme", "support", {"to": [[1, 1], [2, 3]], "alias": "canary"}),
        Call("retire", "acme", "support", {"number": 3}),
        Call("issue", "acme", "support", {"name": "old"}),
        Call("give", "acme", "support", {"grantee": "initech"}),
        Call("age", "acme", "support"),
    ):
        perform(registry, uploads, call)


def kinds_of(seed: int) -> list[str]:
    """The kinds of a story's calls, in their order."""
    return [*random.Random(seed).sample(KINDS, len(KINDS)), *ENDING]


def choose(registry: Registry, kind: str, draw: random.Random, number: int) -> Call:
    """A call of this kind that most often fits what there is; `number` is its place in the story."""
    tenant, adapter, arguments = _CHOICES[kind](Place(registry, draw, number, all_versions(registry)))
    has_key = kind not in _KEYLESS and draw.random() < 0.7
    return Call(kind, tenant, adapter, arguments, f"story-{number}" if has_key else None)


Chosen = tuple[str, str, Mapping[str, Any]]
"""A tenant, an adapter, a call's arguments."""


def _publish(place: Place) -> Chosen:
    name = place.draw.choice(["support", "sales", "billing", "triage"])
    return place.draw.choice(TENANTS), name, {"seed": place.draw.choice(SEEDS)}


def _publish_again(place: Place) -> Chosen:
    # Preferred: what may have been collected.
    retired = [version for version in place.versions if version.state is VersionState.RETIRED]
    version = place.draw.choice(retired or place.versions)
    return version.tenant, version.adapter, {"seed": version.origin["seed"]}


def _publish_equal(place: Place) -> Chosen:
    return "globex", "mirror", {"seed": place.draw.choice(place.versions).origin["seed"]}


def _promote(place: Place) -> Chosen:
    version = place.draw.choice(place.servable)
    arguments = {"to": [[version.number, 1]], "alias": place.draw.choice(["live", "canary"])}
    return version.tenant, version.adapter, arguments


def _compare_and_set(place: Place) -> Chosen:
    tenant, adapter, arguments = _promote(place)
    aliases = place.registry.adapters.get(OPERATOR, tenant, adapter).aliases
    revision = next((alias.revision for alias in aliases if alias.name == arguments["alias"]), 0)
    return tenant, adapter, {**arguments, "expected_revision": revision}


def _split(place: Place) -> Chosen:
    of = [version.number for version in place.servable if (version.tenant, version.adapter) == ("acme", "support")]
    arms = [[number, place.draw.randint(1, 9)] for number in place.draw.sample(of, min(2, len(of)))]
    return "acme", "support", {"to": arms, "alias": place.draw.choice(["live", "canary"])}


def _publish_scratch(place: Place) -> Chosen:
    there = [version for version in place.versions if version.adapter == "scratch"]
    return "acme", "scratch", {"seed": len(SEEDS) + len(there)}


def _retire_scratch(place: Place) -> Chosen:
    return "acme", "scratch", {"number": next(one.number for one in place.servable if one.adapter == "scratch")}


def _retire(place: Place) -> Chosen:
    version = place.draw.choice(place.servable)
    return version.tenant, version.adapter, {"number": version.number}


def _restore(place: Place) -> Chosen:
    retired = [version for version in place.versions if version.state is VersionState.RETIRED]
    version = place.draw.choice(retired or place.versions)
    return version.tenant, version.adapter, {"number": version.number}


def _default(place: Place) -> Chosen:
    version = place.draw.choice(place.servable)
    return version.tenant, version.adapter, {"name": f"{version.adapter}@{version.number}"}


def _annotate(place: Place) -> Chosen:
    version = place.draw.choice(place.versions)
    said = {"tags": [f"t{place.number}"], "note": f"note {place.number}"}
    return version.tenant, version.adapter, {"number": version.number, **said}


def _revoke(place: Place) -> Chosen:
    keys = place.registry.keys.list(OPERATOR, "acme", limit=1000)
    return "acme", "support", {"name": place.draw.choice(keys).name}


_CHOICES: Final[Mapping[str, Callable[[Place], Chosen]]] = {
    "publish": _publish,
    "publish again": _publish_again,
    "publish equal": _publish_equal,
    "promote": _promote,
    "split": _split,
    "compare and set": _compare_and_set,
    "roll back": lambda _: ("acme", "support", {"alias": "live"}),
    "publish scratch": _publish_scratch,
    "retire": _retire,
    "retire scratch": _retire_scratch,
    "restore": _restore,
    "annotate": _annotate,
    "probe": _retire,
    "issue": lambda place: ("acme", "support", {"name": f"key {place.number}"}),
    "revoke": _revoke,
    "give": lambda place: ("acme", "support", {"grantee": f"guest-{place.number}"}),
    "take": lambda _: ("acme", "support", {"grantee": "initech"}),
    "pin": lambda _: ("acme", "support", {}),
    "unpin": lambda _: ("acme", "support", {}),
    "limit": lambda place: ("acme", "support", {"max_adapters": 50 + place.number}),
    "default": _default,
    "age": lambda _: ("acme", "support", {}),
    "collect": lambda _: ("acme", "support", {}),
}
