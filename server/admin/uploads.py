"""The body of an upload, as the gate wants it: names with open streams.

Either multipart with a part for each file, or one archive (.tar.gz, .tar, .zip) as the body itself. What arrives is
spooled to an unnamed temporary file that goes with the request; names are only compared, never used as paths.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from anyio import to_thread
from fastapi import Request
from starlette.datastructures import UploadFile

from adapters import Member, archive_members
from server.errors import BadRequestError

SPOOL_BYTES = 1 << 20
MAX_PARTS = 8
"""More than any adapter has files, so that the gate can still say which file does not belong."""


@asynccontextmanager
async def upload_members(request: Request, *, max_bytes: int) -> AsyncIterator[Iterable[Member]]:
    """The uploaded files, for as long as the block lasts. To be read in a thread. An archive may hold `max_bytes`.

    Raises:
        BadRequestError: a multipart body that is broken, or has parts that are not files.
    """
    if request.headers.get("content-type", "").startswith("multipart/"):
        async with request.form(max_files=MAX_PARTS, max_fields=MAX_PARTS) as form:
            yield [_member(field, part) for field, part in form.multi_items()]
    else:
        with SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
            async for chunk in request.stream():
                await to_thread.run_sync(spool.write, chunk)
            spool.seek(0)
            yield archive_members(cast("BinaryIO", spool), max_bytes=max_bytes)


def _member(field: str, part: UploadFile | str) -> Member:
    if isinstance(part, str) or not part.filename:
        raise BadRequestError("Send each file as a part with a filename.", param=field)
    return part.filename, part.file
