"""A file's name and its bytes. Knows nothing of what an adapter is made of: the gate judges names and contents."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from adapters.errors import InvalidError
from adapters.names import quoted
from adapters.refusals import Refusal, refusal

Member = tuple[str, BinaryIO]
"""A file's name, and its bytes to be read before the next member is asked for."""


def folder_members(folder: Path) -> Iterator[Member]:
    """The files of a folder, by name, each open until the next is asked for.

    A link to a file counts as the file: the folder is the publisher's own. Raises InvalidError `file_unreadable`.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise InvalidError(f"{quoted(str(folder))} can't be read as a folder.", code="file_unreadable") from error
    for path in paths:
        try:
            if not path.is_file():
                raise refusal(
                    Refusal.ILLEGAL_MEMBER_TYPE, f"{quoted(path.name)} is not a plain file: an adapter is two files."
                )
            file = path.open("rb")
        except OSError as error:
            raise InvalidError(f"{quoted(str(path))} can't be read.", code="file_unreadable") from error
        with file:
            yield path.name, file


class Budget:
    """How many bytes an archive may still unpack to."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._spent_bytes = 0

    def spend(self, size_bytes: int) -> None:
        """Raise TooLargeError `archive_too_large` if these are too many."""
        self._spent_bytes += size_bytes
        if self._spent_bytes > self._max_bytes:
            raise refusal(
                Refusal.ARCHIVE_TOO_LARGE, f"The archive unpacks to more than the {self._max_bytes} bytes allowed."
            )


def stream_of(read: Callable[[int], bytes]) -> BinaryIO:
    """A readable stream whose bytes come from `read(at most)`."""
    return io.BufferedReader(_Reader(read), buffer_size=1 << 16)


class _Reader(io.RawIOBase):
    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  — collections.abc.Buffer, from Python 3.12 on
        view = memoryview(buffer).cast("B")
        chunk = self._read(len(view))
        view[: len(chunk)] = chunk
        return len(chunk)
