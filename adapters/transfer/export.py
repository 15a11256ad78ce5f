"""The registry into a folder, while it goes on working: its rows as they were at one moment, and all their bytes."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from adapters.access import Action, allow
from adapters.callers import Caller
from adapters.database import Database
from adapters.digests import digest_folder, hex_of
from adapters.durable import sync_to_disk
from adapters.errors import ConflictError, InvalidError, NotFoundError, StorageError
from adapters.lookups import find_tenant
from adapters.storage import Blobs
from adapters.storage.disk import appear
from adapters.transfer.files import BLOBS_FOLDER, export_errors, write_header, write_lines
from adapters.transfer.records import FORMAT, RECORDS, FileRecord, Header, Rows, Transfer
from adapters.transfer.snapshot import read_audit, read_rows, read_usage


def export_to(
    database: Database, blobs: Blobs, caller: Caller, folder: Path, *, tenant: str | None
) -> Iterator[Transfer]:
    """Write a tenant's things, or all, into `folder`, which appears when it is whole and on the disk. Platform only.

    It is the registry at the moment when the first step is asked for. Left out are calls that may be repeated, and
    uploads on their way.

    Raises:
        InvalidError: `folder_not_empty`.
        NotFoundError: `tenant_not_found`.
        ConflictError: `blob_collected`: the files of a retired version went meanwhile; export again.
        StorageError: the disk or the database failed; `blob_damaged`: publish the same files again, then export.
    """
    allow(caller, Action.OPERATE)
    with export_errors():
        _require_vacant(folder)
    with _staged(folder) as staged:
        # 1 the rows, in one transaction
        with export_errors(), database.read() as connection:
            if tenant is not None:
                find_tenant(connection, tenant)
            rows = read_rows(connection, tenant)
            files = {f"{name}.jsonl": write_lines(staged / f"{name}.jsonl", getattr(rows, name)) for name in RECORDS}
            files["audit.jsonl"] = write_lines(staged / "audit.jsonl", read_audit(connection, tenant))
            files["usage.jsonl"] = write_lines(staged / "usage.jsonl", read_usage(connection, tenant))

        # 2 the bytes, which never change; only those of retired versions may go meanwhile
        digests = sorted({record.files.digest for record in rows.versions if record.has_files})
        (staged / BLOBS_FOLDER).mkdir()
        done = _begun(rows, len(digests))
        for digest in digests:
            done = done.with_blob(_copy(blobs, digest, staged))
            yield done

        # 3 what makes it whole
        _finish(staged, folder, _header(tenant, done, files))
    yield done


def _require_vacant(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InvalidError("An export goes into a new or empty folder, and this is none.", code="folder_not_empty")


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder beside `folder`, readable for its owner alone: there are hashes of keys in it, and weights."""
    target = folder.absolute()
    staged = target.with_name(f".{target.name}.{uuid4().hex[:8]}.partial")
    with export_errors():
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.mkdir(mode=0o700)
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _begun(rows: Rows, blob_count: int) -> Transfer:
    return Transfer(len(rows.tenants), len(rows.adapters), len(rows.versions), 0, blob_count, 0)


def _copy(blobs: Blobs, digest: str, staged: Path) -> int:
    """Copy a blob's files, and say how many bytes they have."""
    target = staged / BLOBS_FOLDER / hex_of(digest)
    try:
        with blobs.hold(digest) as held, export_errors():
            target.mkdir()
            for path in sorted(held.iterdir()):
                shutil.copyfile(path, target / path.name)
                sync_to_disk(target / path.name)
            sync_to_disk(target)
            if digest_folder(target) != digest:
                raise StorageError(f"The copy of {digest} is not what was copied: its disk spoils what it takes.")
            return sum(path.stat().st_size for path in target.iterdir())
    except NotFoundError as error:
        message = "The files of a version were collected while they were to be copied: export again."
        raise ConflictError(message, code="blob_collected") from error


def _header(tenant: str | None, done: Transfer, files: dict[str, FileRecord]) -> Header:
    return Header(
        format=FORMAT,
        made_at=datetime.now(UTC),
        tenant=tenant,
        blob_count=done.blob_count,
        size_bytes=done.size_bytes,
        files=files,
    )


def _finish(staged: Path, folder: Path, header: Header) -> None:
    target = folder.absolute()
    with export_errors():
        sync_to_disk(staged / BLOBS_FOLDER)
        write_header(staged, header)
        sync_to_disk(staged)
        if not appear(staged, target):
            _require_vacant(target)
        sync_to_disk(target.parent)
