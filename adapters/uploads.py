"""Uploads in parts, that go on after a broken connection or a restart, and end as a version.

    <root>/<id>/<file>            what came so far

Invariant: what was acknowledged of a file is on the disk. Where a part broke off, the file is cut back to that before
the next one, and before it is judged. Parts need no idempotency key: one that was acknowledged does not begin where the
file ends now. Knows nothing of what the files are: the gate judges them when the upload is finished.
"""

import builtins
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import Connection, select, update

from adapters.access import Action, allow
from adapters.callers import Caller
from adapters.changes import Change, change
from adapters.database import Database
from adapters.durable import sync_to_disk
from adapters.errors import ConflictError, InvalidError, NotFoundError
from adapters.limits import MAX_MEMBERS, MAX_MODEL_MEMBERS, Limits
from adapters.names import quoted, require_adapter_name
from adapters.refusals import Refusal, refusal
from adapters.schema import UPLOADS
from adapters.storage import alone_in_place, disk_errors
from adapters.upload import append_part, cut_back, folder_members, require_digests
from adapters.upload_rows import (
    UPLOAD_ID,
    acknowledge,
    add_upload,
    as_upload,
    find_open,
    find_upload,
    forget,
    no_such_upload,
    number_of,
    room_bytes,
)
from adapters.values import Kind, Published, Upload
from adapters.versions import Probe, Versions

KEPT: Final = timedelta(hours=24)
"""How long an upload waits for its next part."""
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


class Uploads:
    """`registry.uploads`."""

    def __init__(self, database: Database, root: Path, versions: Versions, limits: Limits) -> None:
        """Keep what comes in `root`, making it if it is not there. Raises StorageError."""
        self._database = database
        self._root = root
        self._versions = versions
        self._limits = limits
        with disk_errors():
            root.mkdir(parents=True, exist_ok=True)

    def begin(self, caller: Caller, tenant: str, adapter: str, *, kind: Kind = Kind.LORA) -> Upload:
        """Begin to upload a version of `adapter`.

        What no version could be called is refused here, before its bytes come.

        Raises:
            InvalidError: `invalid_adapter_name`.
            NotFoundError: `tenant_not_found`.
            ConflictError: `too_many_uploads`; `name_taken_by_base`; `kind_mismatch`.
            ForbiddenError: `quota_exceeded`: it would be one adapter too many.
        """
        allow(caller, Action.MANAGE, tenant)
        require_adapter_name(adapter)
        self._sweep()
        upload_id = f"upload-{uuid4().hex}"
        what = Change(caller, "upload.begin", tenant, adapter, {"kind": kind.value})
        upload = change(self._database, what, partial(add_upload, what, upload_id, kind), Upload)
        with disk_errors():
            (self._root / upload.id).mkdir(exist_ok=True)
            sync_to_disk(self._root)
        return upload

    def get(self, caller: Caller, tenant: str, upload_id: str) -> Upload:
        """An upload, with how many bytes of each file have come. Raises NotFoundError `upload_not_found`."""
        allow(caller, Action.MANAGE, tenant)
        with self._database.read() as connection:
            return as_upload(connection, find_upload(connection, tenant, upload_id), tenant)

    def list(self, caller: Caller, tenant: str) -> builtins.list[Upload]:
        """A tenant's uploads that were not ended, the oldest first."""
        allow(caller, Action.MANAGE, tenant)
        with self._database.read() as connection:
            return find_open(connection, tenant)

    def append(
        self, caller: Caller, tenant: str, upload_id: str, name: str, offset: int, chunks: Iterable[bytes]
    ) -> int:
        """Add a part to the file `name`, which has `offset` bytes; how many it has then, all of them on the disk.

        Raises:
            NotFoundError: `upload_not_found`.
            InvalidError: `invalid_file_name`.
            ConflictError: `offset_mismatch`, naming the right one; `upload_finished`; `upload_busy`.
            RefusedError: `too_many_members`.
            TooLargeError: `file_too_large`. What came of this part is forgotten.
            StorageError: the disk failed or is full. What came of this part is forgotten; or, as `upload_damaged`, the
                disk has lost what came before.
            Exception: whatever `chunks` raises. What came of this part is forgotten.
        """
        self.get(caller, tenant, upload_id)
        if not _NAME.fullmatch(name):
            raise InvalidError(f"{quoted(name)} can't name a file of an upload.", code="invalid_file_name")
        with self._alone(upload_id) as folder:
            with self._database.read() as connection:
                row = find_upload(connection, tenant, upload_id)
                upload = as_upload(connection, row, tenant)
                room = room_bytes(connection, row, self._limits)
            _require_place(upload, name, offset)
            size_bytes = append_part(folder / name, offset, chunks, room=room)
            with self._database.write() as connection:
                # Asked again: other uploads of the tenant have grown meanwhile.
                if size_bytes - offset > room_bytes(connection, row, self._limits, for_update=True):
                    raise refusal(Refusal.FILE_TOO_LARGE, "With this part the tenant's uploads have too many bytes.")
                acknowledge(connection, upload_id, name, size_bytes)
        return size_bytes

    def finish(
        self,
        caller: Caller,
        tenant: str,
        upload_id: str,
        *,
        base: str,
        parents: Sequence[str] = (),
        origin: Mapping[str, Any] | None = None,
        digests: Mapping[str, str] | None = None,
        probe: Probe | None = None,
    ) -> Published:
        """Publish what came, as `Versions.publish` does; what is refused may be mended with more files, or cancelled.

        `digests` are what the files should have, by name: `sha256:<hex>`, for all of them or some. To finish it again
        gives the version that it became.

        Raises:
            NotFoundError: `upload_not_found`.
            ConflictError: `upload_busy`.
            InvalidError: `invalid_digest`; `digest_mismatch`, naming the file.
            StorageError: `upload_damaged`: the disk has lost what was acknowledged.
            RegistryError: whatever publishing raises.
        """
        self.get(caller, tenant, upload_id)
        with self._alone(upload_id) as folder:
            with self._database.read() as connection:
                row = find_upload(connection, tenant, upload_id)
                upload = as_upload(connection, row, tenant)
                became = number_of(connection, row)
            if became is not None:
                return Published(self._versions.get(caller, tenant, row.adapter, became), is_new=bool(row.is_new))
            cut_back(folder, upload.files)
            require_digests(folder, digests or {})
            published = self._versions.publish(
                *(caller, tenant, upload.adapter, folder_members(folder)),
                base=base,
                kind=upload.kind,
                origin=origin,
                parents=parents,
                probe=probe,
            )
            with self._database.write() as connection:
                ended = {"version_id": published.version.id, "is_new": published.is_new}
                columns = ended | {"touched_at": datetime.now(UTC)}
                connection.execute(update(UPLOADS).where(UPLOADS.c.id == upload_id).values(columns))
            _empty(folder)
            return published

    def cancel(self, caller: Caller, tenant: str, upload_id: str) -> Upload:
        """Forget an upload and what came of it.

        Raises:
            NotFoundError: `upload_not_found`.
            ConflictError: `upload_busy`.
        """
        allow(caller, Action.MANAGE, tenant)
        what = Change(caller, "upload.cancel", tenant, upload_id)
        with ExitStack() as held:
            with suppress(NotFoundError):  # a call that is repeated finds nothing, and is answered all the same
                self.get(caller, tenant, upload_id)
                held.enter_context(self._alone(upload_id))
            cancelled = change(self._database, what, partial(_cancel, tenant, upload_id), Upload)
            shutil.rmtree(self._root / cancelled.id, ignore_errors=True)
        return cancelled

    @contextmanager
    def _alone(self, upload_id: str) -> Iterator[Path]:
        """The folder of an upload that is there, for nobody else meanwhile. Waits for nobody: a part may stall."""
        folder = self._root / upload_id
        with ExitStack() as held:
            with disk_errors():
                is_ours = held.enter_context(alone_in_place(folder))
            if not is_ours and folder.exists():
                raise ConflictError("A part of this upload is coming in: come back when it has.", code="upload_busy")
            if not is_ours:  # begun where another home is, or just cancelled
                raise no_such_upload()
            yield folder

    def _sweep(self) -> None:
        """Forget what waits for its next part since long, of all tenants, and folders that are nobody's any more."""
        is_old = UPLOADS.c.touched_at < datetime.now(UTC) - KEPT
        with disk_errors():
            folders = {path.name for path in self._root.iterdir() if UPLOAD_ID.fullmatch(path.name)}
        with self._database.read() as connection:
            # After the folders: an upload's row is there before its folder, and goes before it.
            known = set(connection.execute(select(UPLOADS.c.id)).scalars())
            old = list(connection.execute(select(UPLOADS.c.id).where(is_old)).scalars())
        for upload_id in old:
            folder = self._root / upload_id
            with disk_errors(), alone_in_place(folder) as is_ours:
                if is_ours or not folder.exists():  # its part comes just now; or it was begun where another home is
                    with self._database.write() as connection:
                        known -= set(forget(connection, (UPLOADS.c.id == upload_id) & is_old))
        for name in folders - known:
            shutil.rmtree(self._root / name, ignore_errors=True)


def _cancel(tenant: str, upload_id: str, connection: Connection) -> Upload:
    upload = as_upload(connection, find_upload(connection, tenant, upload_id), tenant)
    forget(connection, UPLOADS.c.id == upload_id)
    return upload


def _require_place(upload: Upload, name: str, offset: int) -> None:
    if upload.version is not None:
        raise ConflictError("The upload was finished: begin another one.", code="upload_finished")
    most = MAX_MODEL_MEMBERS if upload.kind.is_model else MAX_MEMBERS
    if name not in upload.files and len(upload.files) >= most:
        raise refusal(Refusal.TOO_MANY_MEMBERS, f"The upload has {len(upload.files)} files: no version has more.")
    expected = upload.files.get(name, 0)
    if offset != expected:
        raise ConflictError(
            f"{quoted(name)} has {expected} bytes so far, so that its next part begins there.", code="offset_mismatch"
        )


def _empty(folder: Path) -> None:
    """Its files go, the folder stays: to finish it again finds it, until it is swept."""
    with suppress(OSError):  # the version is published: what is left goes when it is swept
        for path in folder.iterdir():
            path.unlink()
