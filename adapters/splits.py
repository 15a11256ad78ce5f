"""What can be a split, and which of its arms answers whom. Knows no database."""

import hashlib
import math
from collections.abc import Sequence
from typing import Final

from adapters.access import no_such_version
from adapters.errors import InvalidError
from adapters.values import Arm

MAX_ARMS: Final = 8
MAX_WEIGHT: Final = 10_000
_MAX_VERSION: Final = 2**31 - 1


def require_arms(to: int | Sequence[Arm]) -> tuple[Arm, ...]:
    """What an alias is to point at, by version.

    Raises:
        InvalidError: `invalid_split`.
        NotFoundError: `version_not_found`: no version can have this number.
    """
    if type(to) is int:
        arms: tuple[Arm, ...] = (Arm(to, 1),)
    elif isinstance(to, Sequence) and _are_arms(to):
        arms = tuple(sorted(to, key=lambda arm: arm.version))
    else:
        raise InvalidError(
            f"A split is 1 to {MAX_ARMS} different versions, each with a weight of 1 to {MAX_WEIGHT}, whole numbers.",
            code="invalid_split",
        )
    for arm in arms:
        if not 1 <= arm.version <= _MAX_VERSION:
            raise no_such_version(arm.version)
    return arms if len(arms) > 1 else (Arm(arms[0].version, 1),)


def _are_arms(to: Sequence[Arm]) -> bool:
    return (
        1 <= len(to) <= MAX_ARMS
        and all(type(arm.version) is type(arm.weight) is int and 1 <= arm.weight <= MAX_WEIGHT for arm in to)
        and len({arm.version for arm in to}) == len(to)
    )


def choose(arms: Sequence[Arm], sticky: str, *, salt: str) -> Arm:
    """The arm for everybody who comes with `sticky`, chosen by the weights; `arms` must not be empty.

    Weighted rendezvous hashing (Schindelhauer and Schomaker, "Weighted distributed hash tables", SPAA 2005): each arm
    draws -ln(u) / weight, and the smallest wins. So when a weight grows, that arm takes callers from the others, and
    no caller moves between two arms whose weights stay. Other `salt`, other groups.
    """
    return min(arms, key=lambda arm: (_draw(arm, sticky, salt), arm.version))


def _draw(arm: Arm, sticky: str, salt: str) -> float:
    drawn = hashlib.blake2b(f"{salt}\0{arm.version}\0{sticky}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    uniform = (int.from_bytes(drawn, "big") + 0.5) / 2**64
    return -math.log(uniform) / arm.weight
