"""Moving an alias without a request having to wait for it: what it will point at is made resident first.

The old version goes when its leases end. A model (kind `merged` or `full`) is what a server starts on: nothing is
loaded for it.
"""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from http import HTTPStatus

from fastapi import Response

from adapters import Alias, Arm, Caller, Published, Version
from server.admin.bodies import LIVE
from server.admin.wire import VersionOut
from server.engine.protocol import AdapterRejectedError
from server.parts import Parts


async def promote(
    parts: Parts,
    caller: Caller,
    versions: Sequence[tuple[Version, int]],
    alias: str,
    *,
    expected_revision: int | None = None,
    must_exist: bool = False,
) -> Alias:
    """Point `alias` at these versions of one adapter, each with its weight.

    Raises:
        ConflictError: `base_mismatch` or `rank_unserved`, or the registry's word.
        AdapterRejectedError: one can't be loaded now.
        AdapterLoadingError: not in time.
    """
    async with AsyncExitStack() as held:
        # One after the other, since an engine may have fewer places than a split has arms; the heaviest comes last, and
        # is held until the alias has moved.
        for version, _ in sorted(versions, key=lambda arm: arm[1]):
            await held.aclose()
            await _make_resident(parts, caller, version, held)
        first = versions[0][0]
        moved = await parts.threads.write(
            parts.registry.aliases.promote,
            *(caller, first.tenant, first.adapter),
            first.number if len(versions) == 1 else [Arm(version.number, weight) for version, weight in versions],
            alias=alias,
            expected_revision=expected_revision,
            must_exist=must_exist,
        )
    parts.warm_up.nudge()  # what is pinned may mean another version now
    return moved


async def answer_published(
    parts: Parts, caller: Caller, published: Published, response: Response, *, is_promoted: bool
) -> VersionOut:
    """The answer to a publish, once `live` means the version if it `is_promoted`: 201, or 200 if it was there already.

    Raises:
        Exception: whatever `promote` raises; the version stays.
    """
    if is_promoted:
        await promote(parts, caller, [(published.version, 1)], LIVE)
    response.status_code = HTTPStatus.CREATED if published.is_new else HTTPStatus.OK
    return VersionOut.of(published.version)


async def _make_resident(parts: Parts, caller: Caller, version: Version, held: AsyncExitStack) -> None:
    if version.manifest.kind.is_model or not version.state.is_servable:
        return  # of what can't be served, the registry says why
    try:
        with parts.in_flight.until_ended():
            await held.enter_async_context(parts.leases.lease(version.target))
    except AdapterRejectedError:
        whose = (caller, version.tenant, version.adapter, version.number)
        now = await parts.threads.read(parts.registry.versions.get, *whose)
        if now.state.is_servable:  # not loaded, but not refused by its probe either: it may be another time
            raise
