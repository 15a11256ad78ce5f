"""Uploads in parts: begun, sent file by file and part by part, finished as one version.

They outlive connections, servers and crashes: what was acknowledged with an `Upload-Offset` is there to go on from. A
part needs no idempotency key: sent again, it does not begin where the file ends now, and is refused with the place.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from http import HTTPStatus
from typing import Annotated

from anyio import from_thread
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from adapters import Caller, ConflictError, Kind, Upload
from server.admin.bodies import NO_BODY, Body
from server.admin.probing import base_of, probe_of
from server.admin.promoting import answer_published
from server.admin.uploads import body_chunks
from server.admin.wire import Page, VersionOut
from server.errors import BadRequestError, MediaTypeError, error_response
from server.parts import AdminDep, Parts, PartsDep

router = APIRouter(prefix="/admin/v1/tenants/{tenant}/uploads")

OFFSET = "upload-offset"
MAX_DIGITS = 15
OFFSET_PARAMETER = {
    "name": OFFSET,
    "in": "header",
    "required": True,
    "schema": {"type": "integer", "minimum": 0},
    "description": "How many bytes of the file have come.",
}
PART = {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


class NewUpload(Body):
    """POST …/uploads."""

    adapter: str
    kind: Kind = Kind.LORA


class Finish(Body):
    """POST …/finish."""

    base: str | None = None
    """What it was trained on or made from; none: the base that is served."""
    parents: Annotated[tuple[str, ...], Field(max_length=32)] = ()
    promote: bool = False
    digests: Mapping[str, str] = Field(default_factory=dict)
    """File name → what its bytes should be: `sha256:<hex>`."""


class UploadOut(BaseModel):
    """An upload: of each file, how many bytes have come for good."""

    id: str
    tenant: str
    adapter: str
    kind: Kind
    files: Mapping[str, int]
    created_at: datetime
    created_by: str
    version: str | None

    @classmethod
    def of(cls, upload: Upload) -> "UploadOut":
        """As it goes out."""
        return cls.model_validate(upload, from_attributes=True)


@router.post("", status_code=HTTPStatus.CREATED)
async def begin(tenant: str, new: NewUpload, caller: AdminDep, parts: PartsDep) -> UploadOut:
    """Begin one. It is forgotten a day after its last part."""
    return UploadOut.of(
        await parts.threads.write(parts.registry.uploads.begin, caller, tenant, new.adapter, kind=new.kind)
    )


@router.get("")
async def list_uploads(tenant: str, caller: AdminDep, parts: PartsDep) -> Page[UploadOut]:
    """A tenant's uploads that were not finished, the oldest first."""
    uploads = await parts.threads.read(parts.registry.uploads.list, caller, tenant)
    return Page(data=[UploadOut.of(upload) for upload in uploads])


@router.get("/{upload_id}")
async def get_upload(tenant: str, upload_id: str, caller: AdminDep, parts: PartsDep) -> UploadOut:
    """Where to go on: the sizes of its files. Once finished, the version that it became."""
    return UploadOut.of(await _upload(parts, caller, tenant, upload_id))


@router.patch(
    "/{upload_id}/files/{name}",
    status_code=HTTPStatus.NO_CONTENT,
    openapi_extra={"parameters": [OFFSET_PARAMETER], "requestBody": PART},
)
async def append(
    tenant: str, upload_id: str, name: str, request: Request, caller: AdminDep, parts: PartsDep
) -> Response:
    """The body is the part that begins at `Upload-Offset`: 204 with the next one's, once this one is on the disk."""
    offset = _offset(request)
    await _upload(parts, caller, tenant, upload_id)
    try:
        with parts.uploads_in_parts.admitted(tenant):
            async with _body(request) as chunks:
                size_bytes = await parts.threads.receive(
                    parts.registry.uploads.append, caller, tenant, upload_id, name, offset, _in_thread(chunks)
                )
    except ConflictError as error:
        if error.code != "offset_mismatch":
            raise
        now = await _upload(parts, caller, tenant, upload_id)
        refused = error_response(error)
        refused.headers[OFFSET] = str(now.files.get(name, 0))
        return refused
    return Response(status_code=HTTPStatus.NO_CONTENT, headers={OFFSET: str(size_bytes)})


@router.post(
    "/{upload_id}/finish",
    status_code=HTTPStatus.CREATED,
    responses={HTTPStatus.OK: {"model": VersionOut, "description": "These very bytes were there already."}},
)
async def finish(
    tenant: str,
    upload_id: str,
    response: Response,
    caller: AdminDep,
    parts: PartsDep,
    asked: Finish | None = None,
) -> VersionOut:
    """Publish what came: 201, or 200 if these very bytes were there already. What is refused stays as it is."""
    asked = asked or Finish()
    upload = await _upload(parts, caller, tenant, upload_id)
    base = await base_of(parts, caller, asked.base)
    probe = await probe_of(parts, tenant, upload.adapter, base, upload.kind, promote=asked.promote)

    with parts.uploads.admitted(tenant):
        published = await parts.threads.publish(
            parts.registry.uploads.finish,
            *(caller, tenant, upload_id),
            base=asked.base or base.fingerprint,
            parents=asked.parents,
            origin={"method": "upload"},
            digests=asked.digests,
            probe=probe,
        )

    return await answer_published(parts, caller, published, response, is_promoted=asked.promote)


@router.delete("/{upload_id}", dependencies=[NO_BODY])
async def cancel(tenant: str, upload_id: str, caller: AdminDep, parts: PartsDep) -> UploadOut:
    """Forget one, and what came of it."""
    return UploadOut.of(await parts.threads.write(parts.registry.uploads.cancel, caller, tenant, upload_id))


async def _upload(parts: Parts, caller: Caller, tenant: str, upload_id: str) -> Upload:
    return await parts.threads.read(parts.registry.uploads.get, caller, tenant, upload_id)


def _offset(request: Request) -> int:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise MediaTypeError("A part must be sent without a content-encoding.")
    stated = request.headers.getlist(OFFSET)
    if len(stated) != 1 or not (stated[0].isascii() and stated[0].isdigit() and len(stated[0]) <= MAX_DIGITS):
        raise BadRequestError("Upload-Offset says how many bytes of the file have come: a number.", param=OFFSET)
    return int(stated[0])


@asynccontextmanager
async def _body(request: Request) -> AsyncIterator[AsyncGenerator[bytes, None]]:
    chunks = body_chunks(request)
    try:
        yield chunks
    finally:
        # If the server stops, the thread still waits for the next one, and is told there. (Typing has no `ag_running`.)
        if not getattr(chunks, "ag_running", False):
            await chunks.aclose()


def _in_thread(chunks: AsyncGenerator[bytes, None]) -> Iterator[bytes]:
    """The body, chunk by chunk as the disk takes it, for a thread that the event loop waits for."""
    while (chunk := from_thread.run(_next, chunks)) is not None:
        yield chunk


async def _next(chunks: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(chunks, None)
