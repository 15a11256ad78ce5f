"""Aliases: promote, split, roll back, take away, and what they pointed at before."""

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from adapters import Alias
from server.admin.bodies import NO_BODY, Pointed, RollbackQuery
from server.admin.paging import BeforeDep, page_of
from server.admin.promoting import promote
from server.admin.wire import AliasOut, MoveOut, Page
from server.errors import BadRequestError
from server.parts import AdminDep, PartsDep

router = APIRouter(prefix="/admin/v1/tenants/{tenant}/adapters/{adapter}")
ETAG = re.compile(r'(?:W/)?"?([0-9]{1,10})"?')
MAX_REVISION = 2**31 - 1
"""As far as SQL's integers go."""
ANY = "*"
IF_MATCH = {"name": "if-match", "in": "header", "schema": {"type": "string"}, "description": "The alias's last ETag."}
IF_NONE_MATCH = {
    "name": "if-none-match",
    "in": "header",
    "schema": {"enum": [ANY]},
    "description": "That there is no such alias yet.",
}


@router.put("/aliases/{alias}", openapi_extra={"parameters": [IF_MATCH, IF_NONE_MATCH]})
async def point(
    tenant: str,
    adapter: str,
    alias: str,
    pointed: Pointed,
    request: Request,
    response: Response,
    caller: AdminDep,
    parts: PartsDep,
) -> AliasOut:
    """Point an alias at a version, or split it between several.

    `If-Match` with the alias's last ETag refuses to overwrite another's move; `If-None-Match: *` refuses to move one
    that is there. Without either, the alias is moved from wherever it is.
    """
    arms = [(pointed.version, 1)] if pointed.version else [(arm.version, arm.weight) for arm in pointed.split or ()]
    expected = _expected_revision(request)
    versions = [
        (await parts.threads.read(parts.registry.versions.get, caller, tenant, adapter, number), weight)
        for number, weight in arms
    ]
    must_exist = request.headers.get("if-match") == ANY
    return _tagged(
        response, await promote(parts, caller, versions, alias, expected_revision=expected, must_exist=must_exist)
    )


@router.delete("/aliases/{alias}", dependencies=[NO_BODY], openapi_extra={"parameters": [IF_MATCH]})
async def remove(
    tenant: str, adapter: str, alias: str, request: Request, caller: AdminDep, parts: PartsDep
) -> AliasOut:
    """The alias, as it was, is no more: no request resolves by it, and its version may be retired.

    `If-Match` as for a move. If the name is promoted again, its ETag is one that it never had.
    """
    removed = await parts.threads.write(
        parts.registry.aliases.remove,
        *(caller, tenant, adapter, alias),
        expected_revision=_expected_revision(request),
    )
    parts.warm_up.nudge()
    return AliasOut.of(removed)


@router.get("/aliases/{alias}/history")
async def list_moves(
    tenant: str, adapter: str, alias: str, page: BeforeDep, caller: AdminDep, parts: PartsDep
) -> Page[MoveOut]:
    """Every promotion of an alias, the newest first, whether or not it was rolled back since."""
    moves = await parts.threads.read(
        parts.registry.aliases.history,
        *(caller, tenant, adapter),
        alias=alias,
        before=page.before,
        limit=page.limit,
    )
    return page_of(moves, page.limit, MoveOut.of, lambda move: move.number)


@router.post("/rollback", dependencies=[NO_BODY], openapi_extra={"parameters": [IF_MATCH]})
async def roll_back(
    tenant: str,
    adapter: str,
    asked: Annotated[RollbackQuery, Query()],
    request: Request,
    response: Response,
    caller: AdminDep,
    parts: PartsDep,
) -> AliasOut:
    """An alias, `live` if none is named, goes back to what it was before its last promote."""
    back = await parts.threads.write(
        parts.registry.aliases.rollback,
        *(caller, tenant, adapter),
        alias=asked.alias,
        expected_revision=_expected_revision(request),
    )
    parts.warm_up.nudge()
    return _tagged(response, back)


def _expected_revision(request: Request) -> int | None:
    """What the request demands of the alias: a revision; 0, that there is none yet; None: nothing."""
    match, none_match = (request.headers.getlist(name) for name in ("if-match", "if-none-match"))
    if none_match:
        if match or none_match != [ANY]:
            raise BadRequestError("If-None-Match takes * here, and stands without If-Match.", param="if-none-match")
        return 0
    if not match or match == [ANY]:
        return None
    found = ETAG.fullmatch(match[0]) if len(match) == 1 else None
    if found is None or int(found[1]) > MAX_REVISION:
        raise BadRequestError('If-Match takes the ETag of the alias, such as "3".', param="if-match")
    return int(found[1])


def _tagged(response: Response, alias: Alias) -> AliasOut:
    out = AliasOut.of(alias)
    response.headers["etag"] = out.etag
    return out
