"""POST …/versions: an upload becomes a version, and with `?promote=true` what `live` means."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from server.admin.bodies import UploadQuery
from server.admin.probing import base_of, probe_of
from server.admin.promoting import answer_published
from server.admin.uploads import upload_members
from server.admin.wire import VersionOut
from server.parts import AdminDep, PartsDep

router = APIRouter(prefix="/admin/v1/tenants/{tenant}/adapters/{adapter}")


ARCHIVE = {"schema": {"type": "string", "format": "binary"}}
FILES = {"schema": {"type": "object", "additionalProperties": {"type": "string", "format": "binary"}}}
BODY = {"required": True, "content": {"multipart/form-data": FILES, "application/octet-stream": ARCHIVE}}
"""The files, each a part with its name, or an archive of them."""


@router.post(
    "/versions",
    status_code=HTTPStatus.CREATED,
    responses={HTTPStatus.OK: {"model": VersionOut, "description": "These very bytes were there already."}},
    openapi_extra={"requestBody": BODY},
)
async def upload(
    tenant: str,
    adapter: str,
    asked: Annotated[UploadQuery, Query()],
    request: Request,
    response: Response,
    caller: AdminDep,
    parts: PartsDep,
) -> VersionOut:
    """Publish a version: 201, or 200 if these very bytes were there already."""
    # 1 before the body is read: may they at all, and is there such a base?
    await parts.threads.read(parts.registry.tenants.get, caller, tenant)
    base = await base_of(parts, caller, asked.base)
    probe = await probe_of(parts, tenant, adapter, base, asked.kind, promote=asked.promote)

    # 2 the body, the gate, the engine, the registry
    limits = parts.registry.limits
    max_bytes = limits.max_model_bytes if asked.kind.is_model else limits.max_upload_bytes
    with parts.uploads.admitted(tenant), parts.registry.staging.folder() as folder:
        async with upload_members(request, folder, max_bytes=max_bytes) as members:
            published = await parts.threads.publish(
                parts.registry.versions.publish,
                *(caller, tenant, adapter, members),
                base=asked.base or base.fingerprint,
                kind=asked.kind,
                origin={"method": "upload"},
                parents=asked.parents,
                probe=probe,
            )

    # 3 the alias
    return await answer_published(parts, caller, published, response, is_promoted=asked.promote)
