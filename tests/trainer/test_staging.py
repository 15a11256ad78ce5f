"""A folder that is made beside its place: whose fault it was when it could not be."""

import errno
import os
from pathlib import Path

import pytest

from trainer.conversion.staging import staged
from trainer.errors import ArtifactError


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_more_is_told_as_such(tmp_path: Path, number: int) -> None:
    with pytest.raises(ArtifactError, match="out: can't be written: "), staged(tmp_path / "out", error=ArtifactError):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_it_that_cannot_be_written_is_told_as_such(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match="out: can't be written: No such file"),
        staged(tmp_path / "out", error=ArtifactError) as staging,
    ):
        (staging / "no" / "file").write_text("")


def test_what_could_not_be_read_is_not_blamed_on_the_writing(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"out: was not made: .*missing\.json"),
        staged(tmp_path / "out", error=ArtifactError),
    ):
        (tmp_path / "missing.json").read_text()
    assert list(tmp_path.iterdir()) == []
