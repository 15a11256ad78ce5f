"""The body of an upload, as the gate wants it: names with open streams.

Either multipart with a part for each file, or one archive (.tar.gz, .tar, .zip) as the body itself. What arrives is
spooled to unnamed files, on the disk that the store is on, that go with the request; names are only compared, never
used as paths.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from time import monotonic
from typing import BinaryIO, cast

from anyio import to_thread
from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from adapters import Member, archive_members
from server.errors import BadRequestError

SPOOL_BYTES = 1 << 20
MAX_PARTS = 64
"""More than an adapter or a small model has files, so that the gate can still say which file does not belong."""
PATIENCE_SECONDS = 60.0
"""How long nothing may come: an upload has its tenant's only place, and a lost connection would have it for good."""
SPAN_SECONDS = 60.0
MIN_BYTES_PER_SECOND = 16 << 10
"""In each span of waiting for a client. Less would take more than a day for what an upload may have."""


@asynccontextmanager
async def upload_members(request: Request, folder: Path, *, max_bytes: int) -> AsyncIterator[Iterable[Member]]:
    """The uploaded files, for as long as the block lasts. To be read in a thread. An archive may hold `max_bytes`.

    `folder` is for what is too large to keep in memory.

    Raises:
        BadRequestError: a multipart body that is broken, or has parts that are not files; `upload_stalled`.
    """
    async with aclosing(body_chunks(request)) as chunks:
        if request.headers.get("content-type", "").startswith("multipart/"):
            try:
                form = await _Parts(request.headers, chunks, folder).parse()
            except MultiPartException as error:
                raise BadRequestError(error.message) from error
            try:
                yield [_member(field, part) for field, part in form.multi_items()]
            finally:
                await form.close()
        else:
            with SpooledTemporaryFile(SPOOL_BYTES, dir=str(folder)) as spool:
                async for chunk in chunks:
                    await to_thread.run_sync(spool.write, chunk)
                spool.seek(0)
                yield archive_members(cast("BinaryIO", spool), max_bytes=max_bytes)


class _Parts(MultiPartParser):
    """Starlette's parser with its files in `folder`: the system's temporary folder may be small, or the host's RAM."""

    def __init__(self, headers: Headers, chunks: AsyncGenerator[bytes, None], folder: Path) -> None:
        super().__init__(headers, chunks, max_files=MAX_PARTS, max_fields=MAX_PARTS)
        self._folder = folder

    def on_headers_finished(self) -> None:
        """Called before a part's first byte."""
        super().on_headers_finished()
        part = self._current_part.file
        if part is not None:
            part.file.close()
            spool = SpooledTemporaryFile(SPOOL_BYTES, dir=str(self._folder))  # noqa: SIM115  — closed with the form
            part.file = cast("BinaryIO", spool)
            self._files_to_close_on_error.append(spool)


async def body_chunks(request: Request, *, clock: Callable[[], float] = monotonic) -> AsyncGenerator[bytes, None]:
    """The body as it comes in.

    Raises:
        BadRequestError: `upload_stalled`: nothing came, or too slowly. What our own disk takes is nobody's slowness.
    """
    waited_seconds, came_bytes = 0.0, 0
    async with aclosing(request.stream()) as stream:
        while True:
            began = clock()
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    chunk = await anext(stream, None)
            except TimeoutError as error:
                raise BadRequestError("No more of the upload came in.", code="upload_stalled") from error
            if chunk is None:
                return
            waited_seconds += clock() - began
            came_bytes += len(chunk)
            if waited_seconds >= SPAN_SECONDS:
                if came_bytes < waited_seconds * MIN_BYTES_PER_SECOND:
                    raise BadRequestError("The upload comes in too slowly.", code="upload_stalled")
                waited_seconds, came_bytes = 0.0, 0
            yield chunk


def _member(field: str, part: UploadFile | str) -> Member:
    if isinstance(part, str) or not part.filename:
        raise BadRequestError("Send each file as a part with a filename.", param=field)
    return part.filename, part.file
