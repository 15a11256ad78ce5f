"""The registry into a folder, while it goes on working: its rows as they were at one moment, and all their bytes."""

import os
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
    database: Database, blobs: Blobs, caller: Caller, folder: Path, *, tenant: str | None, home: Path
) -> Iterator[Transfer]:
    """Write a tenant's things, or all, into `folder`, which appears when it is whole and on the disk. Platform only.

    It is the registry at the moment when the first step is asked for. Left out are calls that may be repeated, and
    uploads on their way. A link means the folder that it leads to. `home` is the registry's own.

    Raises:
        InvalidError: `folder_not_empty`, or `folder_in_home`.
        NotFoundError: `tenant_not_found`.
        ConflictError: `blob_collected`: the files of a retired version went meanwhile; export again.
        StorageError: the disk or the database failed; `blob_damaged`: publish the same files again, then export.
    """
    allow(caller, Action.OPERATE)
    with export_errors():
        target = _vacant(folder, home)
    with _staged(target) as staged:
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
        (staged / BLOBS_FOLDER).mkdir(mode=0o700)
        done = _begun(rows, len(digests))
        for digest in digests:
            done = done.with_blob(_copy(blobs, digest, staged))
            yield done

        # 3 what makes it whole
        _finish(staged, target, _header(tenant, done, files))
    yield done


def _vacant(folder: Path, home: Path) -> Path:
    """Where `folder` is, links followed."""
    target = Path(os.path.realpath(folder))  # Path.resolve raises a RuntimeError for links that go round
    if target.is_relative_to(os.path.realpath(home)):
        message = "An export goes elsewhere than into the registry's own home, which it is to outlive."
        raise InvalidError(message, code="folder_in_home")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise _not_empty()
    return target


def _not_empty() -> InvalidError:
    return InvalidError("An export goes into a new or empty folder, and this is none.", code="folder_not_empty")


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A folder beside `target`, readable for its owner alone: there are hashes of keys in it, and weights."""
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
            target.mkdir(mode=0o700)
            for path in sorted(held.iterdir()):
                (target / path.name).touch(mode=0o600)
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


def _finish(staged: Path, target: Path, header: Header) -> None:
    with export_errors():
        sync_to_disk(staged / BLOBS_FOLDER)
        write_header(staged, header)
        sync_to_disk(staged)
        if not appear(staged, target):
            raise _not_empty()
        sync_to_disk(target.parent)
