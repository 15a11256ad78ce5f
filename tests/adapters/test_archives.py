"""Archives are read member by member, and never unpacked to where they say."""

import gzip
import io
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapters import Base, Caller, Limits, Refusal, RefusedError, Registry, archive_members, folder_members
from adapters.gate import admit
from tests.adapters.judging import BASE, assert_archive_judged
from tests.adapters.strategies import hostile_archives
from tests.builders import make_adapter_folder

CAP = 1 << 20


def packed_tar(folder: Path, *, mode: str = "w:gz", prefix: str = "", kind: int = tarfile.PAX_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode, format=kind) as archive:  # type: ignore[call-overload]
        for path in sorted(folder.iterdir()):
            archive.add(path, arcname=prefix + path.name)
    return packed.getvalue()


def packed_zip(folder: Path, *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return packed.getvalue()


@pytest.fixture
def folder(base: Base, tmp_path: Path) -> Path:
    return make_adapter_folder(tmp_path / "adapter", base)


PACKERS: dict[str, Callable[[Path], bytes]] = {
    "tar.gz": packed_tar,
    "tar": lambda folder: packed_tar(folder, mode="w:"),
    "gnu tar": lambda folder: packed_tar(folder, kind=tarfile.GNU_FORMAT),
    "ustar": lambda folder: packed_tar(folder, kind=tarfile.USTAR_FORMAT),
    "dotted": lambda folder: packed_tar(folder, prefix="./"),
    "zip": packed_zip,
    "stored zip": lambda folder: packed_zip(folder, method=zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS.keys())
def test_an_archive_and_its_folder_are_the_same_version(
    registry: Registry, base: Base, admin: Caller, folder: Path, pack: Callable[[Path], bytes]
) -> None:
    members = archive_members(io.BytesIO(pack(folder)), max_bytes=CAP)
    packed = registry.versions.publish(admin, "acme", "support", members, base=base.fingerprint)
    plain = registry.versions.publish(admin, "acme", "support", folder_members(folder), base=base.fingerprint)
    assert packed.is_new
    assert plain == type(plain)(packed.version, is_new=False)


def test_a_tar_of_the_folder_itself_may_begin_with_a_dot(folder: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(folder, arcname=".")
    packed.seek(0)
    assert sorted(name for name, _ in archive_members(packed)) == [
        "./README.md",
        "./adapter_config.json",
        "./adapter_model.safetensors",
    ]


# --- hostile members --------------------------------------------------------------------------------------------------


def tar_of(*members: tarfile.TarInfo, content: bytes = b"", mode: str = "w:", kind: int = tarfile.PAX_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode, format=kind) as archive:  # type: ignore[call-overload]
        for member in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    made.linkname = target
    return made


def zip_of(*names: str, content: bytes = b"", mode: int = 0) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return packed.getvalue()


def refusal_of(packed: bytes) -> str:
    with tempfile.TemporaryDirectory() as staged, pytest.raises(RefusedError) as caught:
        admit(archive_members(io.BytesIO(packed), max_bytes=CAP), Path(staged), BASE, Limits())
    assert caught.value.code in list(Refusal)
    return caught.value.code


CLIMBING = ["../../etc/cron.d/x", "/abs", "C:\\x", "a/../../b", "%2e%2e/x", "x.", "x ", " x", "a\\b", "..", "a//b", "ä"]


@pytest.mark.parametrize("name", CLIMBING)
@pytest.mark.parametrize("pack", [lambda name: tar_of(member(name)), zip_of], ids=["tar", "zip"])
def test_a_name_that_is_not_plain_is_refused(name: str, pack: Callable[[str], bytes]) -> None:
    assert refusal_of(pack(name)) in {"illegal_member_path", "archive_invalid"}


def test_a_name_with_a_nul_is_refused() -> None:
    packed = zip_of("adapter_config.jsonX").replace(b"adapter_config.jsonX", b"adapter_config.json\0")
    assert refusal_of(packed) in {"illegal_member_path", "archive_invalid"}


@pytest.mark.parametrize("packed", [tar_of(member("")), zip_of("")], ids=["tar", "zip"])
def test_a_name_that_is_empty_is_refused(packed: bytes) -> None:
    assert refusal_of(packed) == "illegal_member_path"


def test_a_name_too_long_for_the_format_is_refused() -> None:
    assert refusal_of(tar_of(member("x" * 200), kind=tarfile.GNU_FORMAT)) == "illegal_member_path"
    assert refusal_of(tar_of(member("x" * 200))) == "archive_invalid"


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"S"],
    ids=["symlink", "hardlink", "character device", "block device", "fifo", "folder", "sparse"],
)
def test_what_is_no_plain_file_is_refused(kind: bytes) -> None:
    assert refusal_of(tar_of(member("adapter_config.json", kind, "/etc/passwd"))) == "illegal_member_type"


@pytest.mark.parametrize("mode", [0o120777, 0o010644, 0o020644, 0o040755], ids=["symlink", "fifo", "device", "folder"])
def test_what_is_no_plain_file_in_a_zip_is_refused(mode: int) -> None:
    assert refusal_of(zip_of("adapter_config.json", mode=mode)) == "illegal_member_type"


def test_files_in_a_folder_of_the_archive_are_refused() -> None:
    assert refusal_of(zip_of("my-adapter/adapter_config.json")) == "unexpected_file"
    assert refusal_of(zip_of("my-adapter/")) == "illegal_member_type"
    assert refusal_of(zip_of("inner.zip")) == "unexpected_file"


@pytest.mark.parametrize("mode", ["w:", "w:gz"])
def test_a_tar_bomb_is_stopped_at_the_cap(mode: str) -> None:
    packed = tar_of(member("adapter_model.safetensors"), content=bytes(CAP), mode=mode)
    assert refusal_of(packed) == "archive_too_large"


def test_a_bomb_in_a_member_that_nobody_wants_is_stopped_too() -> None:
    assert refusal_of(tar_of(member("README.md"), content=bytes(CAP), mode="w:gz")) == "archive_too_large"


def test_a_bomb_after_the_archives_end_is_stopped_too() -> None:
    packed = gzip.compress(tar_of(member("README.md")) + bytes(CAP))
    assert refusal_of(packed) == "archive_too_large"


def test_a_zip_bomb_is_stopped_at_the_cap() -> None:
    assert refusal_of(zip_of("adapter_model.safetensors", content=bytes(CAP + 1))) == "archive_too_large"


def test_a_multitude_of_members_is_refused() -> None:
    names = [f"f{number}" for number in range(3000)]
    assert refusal_of(zip_of(*names)) == "too_many_members"
    assert refusal_of(tar_of(*map(member, names[:100]))) == "too_many_members"


def bare_header(kind: bytes, name: str = "./", size: int = 0) -> bytes:
    made = member(name, kind)
    made.size = size
    return made.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE], ids=["folder", "pax", "global"])
def test_headers_without_end_that_belong_to_no_file_are_refused_at_once(kind: bytes) -> None:
    packed = io.BytesIO(gzip.compress(bare_header(kind) * 2000))
    with pytest.raises(RefusedError) as caught:
        list(archive_members(packed))
    assert caught.value.code == "too_many_members"


def test_extended_headers_are_bounded_together_and_not_one_by_one() -> None:
    record = b"20000 comment=" + b"x" * (20000 - 15) + b"\n"
    extended = bare_header(tarfile.XHDTYPE, size=len(record)) + record.ljust(40 * 512, b"\0")
    end = tar_of(member("README.md"))
    assert [name for name, _ in archive_members(io.BytesIO(extended * 3 + end))] == ["README.md"]
    assert refusal_of(extended * 4 + end) == "archive_invalid"


def test_zip_entries_that_are_passed_over_are_counted_too() -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        packed = zip_of(*["./"] * 100)
    assert refusal_of(packed) == "too_many_members"


def test_a_gzip_of_empty_parts_or_with_something_after_it_is_refused(folder: Path) -> None:
    assert refusal_of(gzip.compress(b"") * 1000) == "archive_invalid"
    assert refusal_of(packed_tar(folder) + gzip.compress(b"")) == "archive_invalid"
    assert refusal_of(packed_tar(folder) + b"#!") == "archive_invalid"


def test_an_extended_header_that_would_rename_a_member_is_refused() -> None:
    renaming = member("adapter_config.json")
    renaming.pax_headers = {"path": "../../x"}
    assert refusal_of(tar_of(renaming)) in {"archive_invalid", "illegal_member_path"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda _: b"not an archive at all",
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:-1],
        lambda packed: packed[:2000] + bytes([packed[2000] ^ 255]) + packed[2001:],
        lambda packed: packed[:10],
    ],
    ids=["empty", "text", "half", "last byte", "changed byte", "head"],
)
@pytest.mark.parametrize("pack", [packed_tar, packed_zip], ids=["tar.gz", "zip"])
def test_a_damaged_archive_is_refused(
    folder: Path, pack: Callable[[Path], bytes], spoil: Callable[[bytes], bytes]
) -> None:
    assert refusal_of(spoil(pack(folder))) == "archive_invalid"


def test_an_encrypted_or_exotic_zip_is_refused() -> None:
    packed = bytearray(zip_of("adapter_config.json", content=b"{}"))
    directory = packed.rindex(b"PK\x01\x02")
    encrypted = bytes(packed[: directory + 8]) + b"\x01" + bytes(packed[directory + 9 :])
    assert refusal_of(encrypted) == "archive_invalid"
    exotic = bytes(packed[: directory + 10]) + struct.pack("<H", 14) + bytes(packed[directory + 12 :])
    assert refusal_of(exotic) == "archive_invalid"


def test_a_zip_with_something_before_or_after_it_is_refused() -> None:
    packed = zip_of("adapter_config.json", content=b"{}")
    assert refusal_of(packed + b"#!") == "archive_invalid"
    assert refusal_of(b"PK\x03\x04" + packed) == "archive_invalid"


# --- generated --------------------------------------------------------------------------------------------------------

SEEDS = [
    tar_of(member("adapter_config.json"), member("adapter_model.safetensors"), content=b"x" * 600),
    gzip.compress(tar_of(member("adapter_config.json"), content=b"{}"), mtime=0),
    zip_of("adapter_config.json", "adapter_model.safetensors", content=b"x" * 600),
]


@settings(max_examples=300)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4),
)
@example(SEEDS[2], [(46, b"\xff" * 8)])
def test_any_damage_to_an_archive_is_refused_with_a_code(archive: bytes, damages: list[tuple[int, bytes]]) -> None:
    spoilt = bytearray(archive)
    for position, replacement in damages:
        start = position % len(spoilt)
        spoilt[start : start + len(replacement)] = replacement
    assert refusal_of(bytes(spoilt))


@settings(max_examples=200)
@given(hostile_archives())
def test_any_archive_is_admitted_or_refused_with_a_code(packed: bytes) -> None:
    assert_archive_judged(packed, max_bytes=CAP)


def test_a_zip_bomb_takes_a_chunk_at_a_time() -> None:
    packed = io.BytesIO(zip_of("adapter_model.safetensors", content=bytes(64 << 20)))
    tracemalloc.start()
    try:
        with tempfile.TemporaryDirectory() as staged, pytest.raises(RefusedError):
            admit(archive_members(packed, max_bytes=32 << 20), Path(staged), BASE, Limits())
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
