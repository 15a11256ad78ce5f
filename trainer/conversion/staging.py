"""A folder that is made beside its place and moved there. Invariant: `out` is whole or not there."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

from adapters import sync_to_disk
from trainer.errors import TrainerError

_OF_THE_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""What a write fails with, which names no file."""


@contextmanager
def staged(out: Path, *, error: type[TrainerError]) -> Iterator[Path]:
    """A folder to write plain files in, which becomes `out` when the block ends without an error; raises `error`."""
    try:
        staging = Path(mkdtemp(prefix=".staging-", dir=out.absolute().parent))
    except OSError as caught:
        raise error(f"{out}: no folder can be made beside it: {caught.strerror}.") from caught
    try:
        try:
            yield staging
        except OSError as caught:
            if _is_of_writing(caught, staging):
                raise
            raise error(f"{out}: was not made: {str(caught).rstrip('.')}.") from caught  # of something that was read
        _put_in_place(staging, out)
    except OSError as caught:
        raise error(f"{out}: can't be written: {caught.strerror or caught}.") from caught
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # gone already, if all went well


def _put_in_place(staging: Path, out: Path) -> None:
    staging.chmod(0o755)
    for file in (*staging.iterdir(), staging):
        sync_to_disk(file)
    staging.rename(out)  # an empty folder gives way
    sync_to_disk(out.absolute().parent)


def _is_of_writing(caught: OSError, staging: Path) -> bool:
    named = caught.filename
    return caught.errno in _OF_THE_DISK or (isinstance(named, str | Path) and Path(named).is_relative_to(staging))


def require_free(out: Path, *, error: type[TrainerError]) -> None:
    """Raise `error` unless a folder can be made at `out`."""
    parent = out.absolute().parent
    try:
        if not parent.is_dir():
            raise error(f"{out}: there is no folder {parent} to make it in.")
        if out.is_symlink():
            raise error(f"{out}: is a link, which a folder can't take the place of; choose another --out.")
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise error(f"{out}: is there already, and is not an empty folder; choose another --out.")
    except OSError as caught:
        raise error(f"{out}: can't be looked at: {caught.strerror}.") from caught
