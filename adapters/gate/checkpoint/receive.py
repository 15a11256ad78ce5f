"""The upload's bytes onto the disk: exactly the files of a checkpoint, under their own names, and not too large."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

from adapters.gate.checkpoint import names
from adapters.gate.receive import FOREIGN_SUFFIXES, PLAIN_PATH
from adapters.limits import (
    MAX_CONFIG_BYTES,
    MAX_INDEX_BYTES,
    MAX_MODEL_MEMBERS,
    MAX_SHARDS,
    MAX_TOKENIZER_BYTES,
    MAX_TOKENIZER_CONFIG_BYTES,
)
from adapters.names import quoted
from adapters.refusals import Faults, Refusal, refusal
from adapters.upload.members import Member

_READ: Final = {
    names.CONFIG: MAX_CONFIG_BYTES,
    names.GENERATION_CONFIG: MAX_CONFIG_BYTES,
    names.TOKENIZER: MAX_TOKENIZER_BYTES,
    names.TOKENIZER_CONFIG: MAX_TOKENIZER_CONFIG_BYTES,
    names.TEMPLATE: MAX_CONFIG_BYTES,
    names.INDEX: MAX_INDEX_BYTES,
}
"""The files besides the weights, with the most bytes that each may have."""
_REQUIRED: Final = (names.CONFIG, names.TOKENIZER, names.TOKENIZER_CONFIG)
_IGNORED: Final = frozenset(
    {
        "recipe.yaml",  # llmcompressor's own notes
        *("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "USE_POLICY.md", ".gitattributes"),
        # Said again, or in an older way, in tokenizer.json and tokenizer_config.json.
        *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model"),
    }
)
_CHUNK_BYTES: Final = 1 << 20


def receive(members: Iterable[Member], folder: Path, *, max_weights_bytes: int, faults: Faults) -> None:
    """Write a checkpoint's files into `folder`, which it makes. Other members are not read, let alone written.

    Adds `unsupported_format`, `unexpected_file` and `missing_file` to `faults`.

    Raises:
        RefusedError: `illegal_member_path`, `too_many_members` or `duplicate_file`, or what reading an archive raises:
            nothing more is read of what comes in such a way.
        TooLargeError: `file_too_large`, before more than the allowed bytes are written; the weights count together.
    """
    folder.mkdir()
    seen: set[str] = set()
    left_bytes = max_weights_bytes
    for path, stream in members:
        name = path.removeprefix("./")
        _require_plain(name, seen)
        seen.add(name)
        if names.is_weights(name):
            left_bytes -= _copy(stream, folder / name, left_bytes, f"all weights together may have {max_weights_bytes}")
        elif name in _READ:
            _copy(stream, folder / name, _READ[name], f"it may have {_READ[name]}")
    _find_strangers(seen, faults)
    _find_missing(seen, faults)


def _require_plain(name: str, seen: set[str]) -> None:
    if not PLAIN_PATH.fullmatch(name):
        raise refusal(
            Refusal.ILLEGAL_MEMBER_PATH, f"A file is called {quoted(name)}; a model's files have plain names."
        )
    if name in seen:
        raise refusal(Refusal.DUPLICATE_FILE, f"{quoted(name)} is there twice.")
    if len(seen) >= MAX_MODEL_MEMBERS:
        raise refusal(
            Refusal.TOO_MANY_MEMBERS, f"There are more than {MAX_MODEL_MEMBERS} files: no checkpoint has as many."
        )


def _copy(stream: BinaryIO, path: Path, max_bytes: int, allowed: str) -> int:
    """How many bytes were written."""
    size_bytes = 0
    with path.open("xb") as file:
        while chunk := stream.read(_CHUNK_BYTES):
            size_bytes += len(chunk)
            if size_bytes > max_bytes:
                raise refusal(Refusal.FILE_TOO_LARGE, f"{path.name} has too many bytes: {allowed}.")
            file.write(chunk)
    return size_bytes


def _find_strangers(seen: set[str], faults: Faults) -> None:
    strangers = sorted(name for name in seen if not (names.is_weights(name) or name in _READ or name in _IGNORED))
    foreign = [name for name in strangers if name.lower().endswith(FOREIGN_SUFFIXES)]
    faults.add(
        Refusal.UNSUPPORTED_FORMAT,
        (f"{quoted(name)} is not safetensors: save the model with safe_serialization" for name in foreign),
    )
    faults.add(
        Refusal.UNEXPECTED_FILE,
        (
            f"{quoted(name)} is not part of a checkpoint, which is {names.CONFIG}, {names.WEIGHTS} or its shards and "
            f"{names.INDEX}, {names.TOKENIZER} and {names.TOKENIZER_CONFIG}, and no code"
            for name in strangers
            if name not in foreign
        ),
    )


def _find_missing(seen: set[str], faults: Faults) -> None:
    faults.add(Refusal.MISSING_FILE, (f"there is no {name}" for name in _REQUIRED if name not in seen))
    counts = {count for name in seen if (count := names.shard_count(name)) is not None}
    if not counts:
        if names.WEIGHTS not in seen:
            faults.add(Refusal.MISSING_FILE, [f"there is no {names.WEIGHTS}"])
        return
    if names.INDEX not in seen:
        faults.add(Refusal.MISSING_FILE, [f"there is no {names.INDEX}, which shards need"])
    if len(counts) > 1 or names.WEIGHTS in seen or not 1 <= min(counts) <= MAX_SHARDS:
        one_of = f"the weights are one {names.WEIGHTS}, or up to {MAX_SHARDS} shards called as {names.shard_name(1, 2)}"
        faults.add(Refusal.INDEX_MISMATCH, [one_of])
        return
    expected = {names.shard_name(number, count) for count in counts for number in range(1, count + 1)}
    found = {name for name in seen if names.shard_count(name) is not None}
    faults.add(Refusal.MISSING_FILE, (f"there is no {name}" for name in sorted(expected - found)))
    faults.add(Refusal.UNEXPECTED_FILE, (f"{name} counts wrong" for name in sorted(found - expected)))
