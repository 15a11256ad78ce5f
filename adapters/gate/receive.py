"""The upload's bytes onto the disk: exactly the two files of an adapter, under their own names, and not too large."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from adapters.digests import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE
from adapters.limits import MAX_CONFIG_BYTES, MAX_MEMBERS
from adapters.names import quoted
from adapters.refusals import Faults, Refusal, refusal
from adapters.upload.members import Member

_IGNORED: Final = frozenset({"README.md"})
PLAIN_PATH: Final = re.compile(
    r"(?:\.?[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*\.?[A-Za-z0-9_-](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?"
)
FOREIGN_SUFFIXES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".gguf", ".ggml", ".npz", ".npy", ".h5")
_CHUNK_BYTES: Final = 1 << 20


def receive(members: Iterable[Member], folder: Path, *, max_weights_bytes: int, faults: Faults) -> None:
    """Write the two files into `folder`, which it makes. Other members are not read, let alone written.

    Adds `unsupported_format`, `unexpected_file` and `missing_file` to `faults`; the two files may still be judged.

    Raises:
        RefusedError: `illegal_member_path`, `too_many_members` or `duplicate_file`, or what reading an archive raises:
            nothing more is read of what comes in such a way.
        TooLargeError: `file_too_large`, before more than the allowed bytes are written.
    """
    max_bytes = {CONFIG_FILE: MAX_CONFIG_BYTES, WEIGHTS_FILE: max_weights_bytes}
    folder.mkdir()
    seen: list[str] = []
    for path, stream in members:
        name = _plain_name(path)
        if name in seen:
            raise refusal(Refusal.DUPLICATE_FILE, f"{quoted(name)} is there twice.")
        seen.append(name)
        if len(seen) > MAX_MEMBERS:
            raise refusal(
                Refusal.TOO_MANY_MEMBERS, f"There are more than {MAX_MEMBERS} files; an adapter is {_the_two()}."
            )
        if name in max_bytes:
            _copy(stream, folder / name, max_bytes)
    _find_strangers(seen, faults)


def _plain_name(path: str) -> str:
    name = path.removeprefix("./")
    if not PLAIN_PATH.fullmatch(name):
        raise refusal(
            Refusal.ILLEGAL_MEMBER_PATH, f"A file is called {quoted(path)}; an adapter's files are {_the_two()}."
        )
    return name


def _copy(stream: BinaryIO, path: Path, max_bytes: Mapping[str, int]) -> None:
    left = max_bytes[path.name]
    with path.open("xb") as file:
        while chunk := stream.read(_CHUNK_BYTES):
            left -= len(chunk)
            if left < 0:
                raise refusal(
                    Refusal.FILE_TOO_LARGE, f"{path.name} has more than the {max_bytes[path.name]} bytes allowed."
                )
            file.write(chunk)


def _find_strangers(seen: list[str], faults: Faults) -> None:
    strangers = [name for name in seen if name not in ADAPTER_FILES and name not in _IGNORED]
    foreign = [name for name in strangers if name.lower().endswith(FOREIGN_SUFFIXES)]
    faults.add(
        Refusal.UNSUPPORTED_FORMAT,
        (
            f"{quoted(name)} is not safetensors: save the adapter with safe_serialization, as {WEIGHTS_FILE}"
            for name in foreign
        ),
    )
    faults.add(
        Refusal.UNEXPECTED_FILE,
        (
            f"{quoted(name)} is not part of an adapter, which is {_the_two()} and no folder around them"
            for name in strangers
            if name not in foreign
        ),
    )
    # Weights in another format are there, after all.
    missing = (name for name in ADAPTER_FILES if name not in seen and not (foreign and name == WEIGHTS_FILE))
    faults.add(Refusal.MISSING_FILE, (f"there is no {name}" for name in missing))


def _the_two() -> str:
    return " and ".join(ADAPTER_FILES)
