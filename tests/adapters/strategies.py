"""Hostile uploads, generated: files, archives, HTTP bodies. Some happen to be sound; most are not.

@given(configs())            the bytes of an adapter_config.json
@given(weights())            the bytes of an adapter_model.safetensors
@given(hostile_members())    files by name, as a folder would hold them
@given(hostile_archives())   the bytes of an archive
@given(hostile_uploads())    an HTTP body: (content type, bytes, what was done to it)
"""

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable

from hypothesis import strategies as st

from tests.adapters.strategies_of_files import GOOD, configs, tensors, weights
from tests.builders import adapter_config, safetensors_bytes

__all__ = ["configs", "hostile_archives", "hostile_members", "hostile_uploads", "tensors", "weights"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Members = list[tuple[str, bytes]]
Upload = tuple[str, bytes, str]

# --- files ------------------------------------------------------------------------------------------------------------

PATHS = st.sampled_from(
    [
        *(
            "../../x",
            "/abs",
            "C:\\x",
            "a/../b",
            "%2e%2e/x",
            "x.",
            " x",
            "a\\b",
            "..",
            ".",
            "a//b",
            "\uff0e\uff0e/x",
            "x" * 300,
        ),
        *("adapter_model.bin", "optimizer.pt", "model.gguf", "tokenizer.json", "chat_template.jinja", "model.py"),
        *("my/adapter_config.json", "./adapter_config.json", "ADAPTER_CONFIG.JSON", "README.md", "inner.zip", "nul\0l"),
        *(CONFIG, WEIGHTS),
    ]
)


@st.composite
def hostile_members(draw: st.DrawFn) -> Members:
    """Files by name: one of the two is wrong, or both, or there are others."""
    good = (json.dumps(adapter_config()).encode(), safetensors_bytes(GOOD))
    config, content = draw(
        st.tuples(configs(), weights())
        | st.tuples(configs(), st.just(good[1]))
        | st.tuples(st.just(good[0]), weights())
    )
    members = [(CONFIG, config), (WEIGHTS, content)]
    others = draw(st.just([]) | st.lists(st.tuples(PATHS, st.binary(max_size=40)), max_size=3))
    dropped = draw(st.sampled_from([None, None, None, None, CONFIG, WEIGHTS]))
    return draw(st.permutations([*(member for member in members if member[0] != dropped), *others]))


# --- archives ---------------------------------------------------------------------------------------------------------

TYPES = (
    tarfile.REGTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.FIFOTYPE,
    tarfile.DIRTYPE,
    b"S",
    b"V",
)


def pack_tar(members: Members, types: list[bytes] | None = None, form: int = tarfile.GNU_FORMAT) -> bytes:
    """A plain tar. `types`: one for each member, regular files if None."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:", format=form) as archive:
        for number, (name, content) in enumerate(members):
            entry = tarfile.TarInfo(name.replace("\0", "0"))
            entry.type, entry.linkname = (types[number] if types else tarfile.REGTYPE), "/etc/passwd"
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def pack_zip(members: Members, modes: list[int] | None = None) -> bytes:
    """A zip. `modes`: a Unix file mode for each member."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (name, content) in enumerate(members):
            if name.replace("\0", "0") in archive.namelist():
                continue  # `zipfile` warns of it
            entry = zipfile.ZipInfo(name.replace("\0", "0"))
            entry.external_attr = (modes[number] if modes else 0) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return packed.getvalue()


def pack_gzip(members: Members) -> bytes:
    """A .tar.gz."""
    return gzip.compress(pack_tar(members), mtime=0)


PACKERS: dict[str, Callable[[Members], bytes]] = {"tar": pack_tar, "tar.gz": pack_gzip, "zip": pack_zip}
BOMB_BYTES = 1 << 21


@st.composite
def odd_members(draw: st.DrawFn) -> bytes:
    """An archive whose members are of odd types, or of odd names, or very many, or very large."""
    pack = draw(st.sampled_from([pack_gzip, pack_zip]))
    match draw(st.sampled_from(["types", "modes", "names", "many", "large"])):
        case "many":
            return pack([(f"f{number}", b"") for number in range(draw(st.sampled_from([17, 65, 500])))])
        case "large":
            return pack([(draw(PATHS), bytes(BOMB_BYTES))])
        case kind:
            members = draw(st.lists(st.tuples(PATHS, st.binary(max_size=20)), min_size=1, max_size=6))
            if kind == "types":
                types = draw(st.lists(st.sampled_from(TYPES), min_size=len(members), max_size=len(members)))
                return pack_tar(members, types, draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])))
            if kind == "modes":
                modes = st.sampled_from([0, 0o120777, 0o010644, 0o040755])
                return pack_zip(members, draw(st.lists(modes, min_size=len(members), max_size=len(members))))
            return pack(members)


@st.composite
def damaged_archives(draw: st.DrawFn) -> bytes:
    """An archive cut short, lengthened, overwritten, or two formats in one."""
    good = [(CONFIG, json.dumps(adapter_config()).encode()), (WEIGHTS, safetensors_bytes(GOOD))]
    one, other = (PACKERS[draw(st.sampled_from(sorted(PACKERS)))](good) for _ in range(2))
    position = draw(st.integers(0, len(one) - 1))
    replaced = draw(st.binary(min_size=1, max_size=8))
    return draw(
        st.sampled_from(
            [
                one[:position],
                one + other,
                one + replaced,
                replaced + one,
                one[:position] + replaced + one[position + len(replaced) :],
                gzip.compress(one, mtime=0),
                gzip.compress(gzip.compress(one, mtime=0), mtime=0),
                replaced,
            ]
        )
    )


def hostile_archives() -> st.SearchStrategy[bytes]:
    """The bytes of a .tar, a .tar.gz, a .zip, or of what is none."""
    packed = st.tuples(st.sampled_from(sorted(PACKERS)), hostile_members()).map(lambda one: PACKERS[one[0]](one[1]))
    return packed | odd_members() | damaged_archives()


# --- HTTP bodies ------------------------------------------------------------------------------------------------------

BOUNDARY = "lorikeet-hostile-boundary"
ARCHIVE_TYPES = ("application/gzip", "application/x-tar", "application/zip", "application/octet-stream")


def as_multipart(members: Members) -> bytes:
    """A part for each file, in the content type `multipart/form-data; boundary=BOUNDARY`."""
    parts = (
        f"--{BOUNDARY}\r\n"
        f'content-disposition: form-data; name="files"; filename="{_header_text(name)}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in members
    )
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def _header_text(name: str) -> str:
    return "".join(character for character in name if character.isprintable() and character not in '"\\')


def hostile_uploads() -> st.SearchStrategy[Upload]:
    """(content type, body, what it is) of uploads that nobody should be hurt by."""
    parts = hostile_members().map(
        lambda members: (
            f"multipart/form-data; boundary={BOUNDARY}",
            as_multipart(members),
            f"multipart of {[name for name, _ in members]}",
        )
    )
    archives = st.tuples(st.sampled_from(ARCHIVE_TYPES), hostile_archives()).map(
        lambda one: (one[0], one[1], f"archive of {len(one[1])} bytes")
    )
    return parts | archives
