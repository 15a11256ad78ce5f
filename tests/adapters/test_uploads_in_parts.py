"""A version that comes part by part: what was acknowledged stays, whatever breaks, and nothing else does."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import (
    Base,
    Caller,
    ConflictError,
    ForbiddenError,
    InvalidError,
    Kind,
    Limits,
    NotFoundError,
    RefusedError,
    Registry,
    StorageError,
    TenantLimits,
    TooLargeError,
    Upload,
    folder_members,
    open_registry,
)
from adapters.upload_rows import BESIDE_WEIGHTS, MAX_OPEN
from tests.adapters.conftest import Execute, Publish
from tests.builders import make_adapter_folder, make_base_of, make_model_folder

FILES = ("adapter_config.json", "adapter_model.safetensors")
Send = Callable[[Upload, str, bytes], int]


@pytest.fixture
def files(tmp_path: Path, base: Base) -> dict[str, bytes]:
    folder = make_adapter_folder(tmp_path / "adapter", base, seed=1)
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture
def upload(registry: Registry, admin: Caller) -> Upload:
    return registry.uploads.begin(admin, "acme", "support")


@pytest.fixture
def send(registry: Registry, admin: Caller) -> Send:
    """Add a part where the file ends."""

    def add(upload: Upload, name: str, content: bytes) -> int:
        offset = registry.uploads.get(admin, "acme", upload.id).files.get(name, 0)
        return registry.uploads.append(admin, "acme", upload.id, name, offset, [content])

    return add


def torn(content: bytes) -> Iterator[bytes]:
    """A part that breaks off."""
    yield content
    raise ConnectionAbortedError("the client is gone")


def left_of(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "store" / "uploads").rglob("*"))


def test_what_came_in_parts_is_published_as_if_it_had_come_at_once(
    registry: Registry, admin: Caller, base: Base, files: dict[str, bytes], send: Send, tmp_path: Path
) -> None:
    upload = registry.uploads.begin(admin, "acme", "support")
    for name, content in files.items():
        for begin in range(0, len(content), 1000):
            send(upload, name, content[begin : begin + 1000])
    sizes = {name: len(content) for name, content in files.items()}
    assert registry.uploads.get(admin, "acme", upload.id).files == sizes
    came = registry.uploads.finish(admin, "acme", upload.id, base=base.fingerprint)
    at_once = registry.versions.publish(admin, "acme", "support", folder_members(tmp_path / "adapter"), base=base.name)
    assert (came.is_new, at_once.is_new) == (True, False)
    assert came.version == at_once.version


def test_to_finish_it_again_gives_the_same_answer_and_its_files_are_gone(
    registry: Registry, admin: Caller, base: Base, files: dict[str, bytes], upload: Upload, send: Send, home: Path
) -> None:
    for name, content in files.items():
        send(upload, name, content)
    first = registry.uploads.finish(admin, "acme", upload.id, base=base.name)
    assert registry.uploads.finish(admin, "acme", upload.id, base=base.name) == first
    assert registry.uploads.get(admin, "acme", upload.id).version == "acme/support@1"
    assert registry.uploads.list(admin, "acme") == []
    assert left_of(home) == [upload.id]
    with pytest.raises(ConflictError) as caught:
        registry.uploads.append(admin, "acme", upload.id, FILES[0], 0, [b"x"])
    assert caught.value.code == "upload_finished"


@pytest.mark.parametrize("offset", [0, 2, 4, 10**15])
def test_a_part_that_does_not_begin_where_the_file_ends_is_refused_with_the_right_place(
    registry: Registry, admin: Caller, upload: Upload, send: Send, offset: int
) -> None:
    send(upload, "a", b"xyz")
    with pytest.raises(ConflictError, match="'a' has 3 bytes") as caught:
        registry.uploads.append(admin, "acme", upload.id, "a", offset, [b"more"])
    assert caught.value.code == "offset_mismatch"
    assert registry.uploads.get(admin, "acme", upload.id).files == {"a": 3}


def test_a_part_that_breaks_off_leaves_what_was_there(
    registry: Registry, admin: Caller, upload: Upload, send: Send, home: Path
) -> None:
    send(upload, "a", b"abc")
    for name, offset in (("a", 3), ("b", 0)):
        with pytest.raises(StorageError):  # an OSError of its own kind, which no client gets to see
            registry.uploads.append(admin, "acme", upload.id, name, offset, torn(b"lost"))
    folder = home / "store" / "uploads" / upload.id
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == [b"abc", b""]
    assert registry.uploads.get(admin, "acme", upload.id).files == {"a": 3}
    assert send(upload, "a", b"def") == 6
    assert (folder / "a").read_bytes() == b"abcdef"


def test_what_lies_beyond_the_acknowledged_bytes_is_not_published(
    registry: Registry, admin: Caller, base: Base, files: dict[str, bytes], upload: Upload, send: Send, home: Path
) -> None:
    for name, content in files.items():
        send(upload, name, content)
    folder = home / "store" / "uploads" / upload.id
    with (folder / FILES[1]).open("ab") as file:
        file.write(b"a torn part")
    (folder / "evil.py").write_bytes(b"a file whose first part broke off")
    assert registry.uploads.finish(admin, "acme", upload.id, base=base.name).is_new


@pytest.mark.parametrize("loss", [lambda path: path.unlink(), lambda path: os.truncate(path, 2)], ids=["all", "some"])
def test_bytes_that_the_disk_lost_are_said_to_be_lost_and_never_filled_up(
    registry: Registry, admin: Caller, base: Base, upload: Upload, send: Send, home: Path, loss: Callable[[Path], None]
) -> None:
    send(upload, "a", b"abc")
    loss(home / "store" / "uploads" / upload.id / "a")
    for call in (
        lambda: send(upload, "a", b"def"),
        lambda: registry.uploads.finish(admin, "acme", upload.id, base=base.name),
    ):
        with pytest.raises(StorageError) as caught:
            call()
        assert caught.value.code == "upload_damaged"


KILLED = """
import os, signal, sys
from pathlib import Path
from adapters import Caller, open_registry

home, upload_id, url = sys.argv[1:]
def chunks():
    yield b"d" * 100_000
    os.kill(os.getpid(), signal.SIGKILL)

with open_registry(Path(home), url or None) as registry:
    operator = Caller.operator()
    registry.uploads.append(operator, "acme", upload_id, "a", 0, [b"abc"])
    registry.uploads.append(operator, "acme", upload_id, "a", 3, chunks())
"""


def test_a_process_that_is_killed_in_a_part_loses_that_part_alone(
    registry: Registry, admin: Caller, upload: Upload, send: Send, home: Path, database_url: str | None
) -> None:
    command = [sys.executable, "-c", KILLED, str(home), upload.id, database_url or ""]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    path = home / "store" / "uploads" / upload.id / "a"
    assert path.stat().st_size > 3
    assert registry.uploads.get(admin, "acme", upload.id).files == {"a": 3}
    send(upload, "a", b"def")
    assert path.read_bytes() == b"abcdef"


def test_while_a_part_comes_in_its_upload_is_busy_and_keeps_nobody_waiting(
    registry: Registry, admin: Caller, base: Base, upload: Upload
) -> None:
    refused = []

    def chunks() -> Iterator[bytes]:
        yield b"fir"
        for again in (
            partial(registry.uploads.append, admin, "acme", upload.id, "a", 0, [b"second"]),
            partial(registry.uploads.finish, admin, "acme", upload.id, base=base.name),
            partial(registry.uploads.cancel, admin, "acme", upload.id),
        ):
            with pytest.raises(ConflictError) as caught:
                again()
            refused.append(caught.value.code)
        yield b"st"

    assert registry.uploads.append(admin, "acme", upload.id, "a", 0, chunks()) == 5
    assert refused == ["upload_busy"] * 3


def test_uploads_at_once_have_no_more_bytes_together_than_their_tenant_may(
    registry: Registry, admin: Caller, operator: Caller, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.upload_rows.BESIDE_WEIGHTS", 0)
    registry.tenants.set_limits(operator, "acme", TenantLimits(max_bytes=5))
    other = registry.uploads.begin(admin, "acme", "sales")

    def chunks() -> Iterator[bytes]:
        yield b"123"
        assert registry.uploads.append(admin, "acme", other.id, "a", 0, [b"123"]) == 3

    with pytest.raises(TooLargeError):
        registry.uploads.append(admin, "acme", upload.id, "a", 0, chunks())
    assert registry.uploads.get(admin, "acme", upload.id).files == {}


@settings(max_examples=30)
@given(
    content=st.binary(max_size=4000),
    pieces=st.lists(st.tuples(st.integers(0, 700), st.integers(1, 300), st.booleans()), max_size=8),
)
def test_however_it_is_cut_and_whatever_breaks_the_bytes_are_those_that_were_sent(
    prepared_home: Path, content: bytes, pieces: list[tuple[int, int, bool]]
) -> None:
    operator = Caller.operator()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        home = shutil.copytree(prepared_home, Path(folder) / "home")
        registry = opened.enter_context(open_registry(home))
        upload = registry.uploads.begin(operator, "acme", "support")
        path = home / "store" / "uploads" / upload.id / "a"
        for size, chunk, breaks in [*pieces, (len(content), 512, False)]:
            done = registry.uploads.get(operator, "acme", upload.id).files.get("a", 0)
            part = content[done : done + size]
            if breaks:
                with pytest.raises(StorageError):
                    registry.uploads.append(operator, "acme", upload.id, "a", done, torn(part))
                _scribble(path, part)
                registry = opened.enter_context(open_registry(home))  # as after a restart
            else:
                chunks = [part[begin : begin + chunk] for begin in range(0, len(part), chunk)]
                assert registry.uploads.append(operator, "acme", upload.id, "a", done, chunks) == done + len(part)
        assert path.read_bytes() == content


def _scribble(path: Path, part: bytes) -> None:
    """What a killed process leaves: any of the part, beyond what was acknowledged."""
    with path.open("ab") as file:
        file.write(part[: len(part) // 2])


def test_a_digest_that_differs_publishes_nothing_names_the_file_and_keeps_the_parts(
    registry: Registry, admin: Caller, base: Base, files: dict[str, bytes], upload: Upload, send: Send
) -> None:
    for name, content in files.items():
        send(upload, name, content)
    right = {name: f"sha256:{hashlib.sha256(content).hexdigest()}" for name, content in files.items()}
    wrong = f"sha256:{'0' * 64}"
    for digests, code, named in (
        (right | {FILES[1]: wrong}, "digest_mismatch", FILES[1]),
        ({"../../registry.db": wrong}, "digest_mismatch", "Nothing came of"),
        ({FILES[0]: "md5:1"}, "invalid_digest", FILES[0]),
    ):
        with pytest.raises(InvalidError, match=named) as caught:
            registry.uploads.finish(admin, "acme", upload.id, base=base.name, digests=digests)
        assert caught.value.code == code
    assert registry.adapters.list(admin, "acme") == []
    assert registry.uploads.finish(admin, "acme", upload.id, base=base.name, digests=right).is_new


def test_what_the_gate_refuses_stays_and_can_be_cancelled(
    registry: Registry, admin: Caller, base: Base, upload: Upload, send: Send, home: Path
) -> None:
    send(upload, FILES[0], b"{}")
    with pytest.raises(RefusedError):
        registry.uploads.finish(admin, "acme", upload.id, base=base.name)
    assert registry.uploads.list(admin, "acme") == [registry.uploads.get(admin, "acme", upload.id)]
    cancelled = registry.uploads.cancel(admin, "acme", upload.id)
    assert cancelled.files == {FILES[0]: 2}
    assert left_of(home) == []


def test_a_model_comes_in_parts_too(
    registry: Registry, admin: Caller, operator: Caller, tmp_path: Path, send: Send
) -> None:
    base = registry.bases.add(operator, make_base_of(make_model_folder(tmp_path / "base"), "whole"))
    upload = registry.uploads.begin(admin, "acme", "model", kind=Kind.FULL)
    for path in make_model_folder(tmp_path / "tuned", seed=1).iterdir():
        send(upload, path.name, path.read_bytes())
    published = registry.uploads.finish(admin, "acme", upload.id, base=base.fingerprint)
    assert published.version.manifest.kind is Kind.FULL


def test_nobody_else_sees_an_upload(registry: Registry, admin: Caller, upload: Upload) -> None:
    foe = replace(admin, tenant="globex")
    unknown = f"upload-{'0' * 32}"
    for tenant, upload_id, code in (
        ("acme", upload.id, "tenant_not_found"),
        ("globex", upload.id, "upload_not_found"),
        ("globex", unknown, "upload_not_found"),
        ("globex", "../../registry.db", "upload_not_found"),
        ("globex", "\0", "upload_not_found"),
    ):
        for call in (
            lambda t, i: registry.uploads.get(foe, t, i),
            lambda t, i: registry.uploads.append(foe, t, i, "a", 0, [b"x"]),
            lambda t, i: registry.uploads.finish(foe, t, i, base="tiny"),
            lambda t, i: registry.uploads.cancel(foe, t, i),
        ):
            with pytest.raises(NotFoundError) as caught:
                call(tenant, upload_id)
            assert caught.value.code == code
    assert registry.uploads.list(admin, "acme") == [upload]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "x" * 201, "a\0", "a b", "ü"])
def test_a_name_that_is_no_plain_one_is_refused(registry: Registry, admin: Caller, upload: Upload, name: str) -> None:
    with pytest.raises(InvalidError) as caught:
        registry.uploads.append(admin, "acme", upload.id, name, 0, [b"x"])
    assert caught.value.code == "invalid_file_name"


def test_what_could_never_be_published_is_refused_before_its_bytes_come(
    registry: Registry, admin: Caller, operator: Caller, publish: Publish
) -> None:
    publish("support")
    with pytest.raises(ConflictError) as mixed:
        registry.uploads.begin(admin, "acme", "support", kind=Kind.FULL)
    assert mixed.value.code == "kind_mismatch"
    for adapter, kind, code in (
        ("Support", InvalidError, "invalid_adapter_name"),
        ("tiny", ConflictError, "name_taken_by_base"),
    ):
        with pytest.raises(kind) as caught:
            registry.uploads.begin(admin, "acme", adapter)
        assert caught.value.code == code
    registry.tenants.set_limits(operator, "acme", TenantLimits(max_adapters=0))
    with pytest.raises(ForbiddenError):
        registry.uploads.begin(admin, "acme", "sales")


def test_a_tenant_has_no_more_open_uploads_than_it_may(registry: Registry, admin: Caller) -> None:
    uploads = [registry.uploads.begin(admin, "acme", "support") for _ in range(MAX_OPEN)]
    with pytest.raises(ConflictError) as caught:
        registry.uploads.begin(admin, "acme", "support")
    assert caught.value.code == "too_many_uploads"
    assert registry.uploads.list(admin, "acme") == uploads
    registry.uploads.cancel(admin, "acme", uploads[0].id)
    registry.uploads.begin(admin, "acme", "support")


def test_an_upload_has_no_more_bytes_and_files_than_it_may(
    registry: Registry, admin: Caller, operator: Caller, upload: Upload, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.uploads, "_limits", Limits(max_upload_bytes=5))
    monkeypatch.setattr("adapters.upload_rows.BESIDE_WEIGHTS", 1)
    assert BESIDE_WEIGHTS > 1
    send(upload, "a", b"1234")
    with pytest.raises(TooLargeError, match="2 more may come"):
        send(upload, "b", b"123")
    registry.tenants.set_limits(operator, "acme", TenantLimits(max_bytes=4))
    with pytest.raises(TooLargeError, match="1 more may come"):
        send(upload, "b", b"12")
    assert registry.uploads.get(admin, "acme", upload.id).files == {"a": 4}
    for number in range(15):
        send(upload, f"file-{number}", b"")
    with pytest.raises(RefusedError) as caught:
        send(upload, "one-more", b"")
    assert caught.value.code == "too_many_members"


def test_what_waits_for_a_day_is_swept_and_the_rest_stays(
    registry: Registry, admin: Caller, upload: Upload, send: Send, home: Path, execute: Execute
) -> None:
    kept = registry.uploads.begin(admin, "acme", "sales")
    for one in (upload, kept):
        send(one, "a", b"abc")
    orphan = home / "store" / "uploads" / f"upload-{'0' * 32}"
    orphan.mkdir()
    execute("UPDATE uploads SET touched_at = '2026-01-01 00:00:00.000000' WHERE adapter = 'support'")
    new = registry.uploads.begin(admin, "acme", "third")
    assert left_of(home) == sorted(["a", kept.id, new.id])
    assert {one.id for one in registry.uploads.list(admin, "acme")} == {kept.id, new.id}
    assert execute("SELECT upload_id FROM upload_files") == [(kept.id,)]


def test_an_old_upload_whose_part_just_comes_is_not_swept(
    registry: Registry, admin: Caller, upload: Upload, execute: Execute
) -> None:
    execute("UPDATE uploads SET touched_at = '2026-01-01 00:00:00.000000'")

    def chunks() -> Iterator[bytes]:
        registry.uploads.begin(admin, "acme", "third")
        yield b"abc"

    assert registry.uploads.append(admin, "acme", upload.id, "a", 0, chunks()) == 3
    assert registry.uploads.get(admin, "acme", upload.id).files == {"a": 3}


def test_calls_that_are_repeated_under_their_key_are_done_once(
    registry: Registry, admin: Caller, base: Base, files: dict[str, bytes], send: Send
) -> None:
    begin, finish, cancel = (replace(admin, idempotency_key=f"key-{number}") for number in range(3))
    first, again = (registry.uploads.begin(begin, "acme", "support") for _ in range(2))
    assert first == again
    assert registry.uploads.list(admin, "acme") == [first]
    for name, content in files.items():
        send(first, name, content)
    published = [registry.uploads.finish(finish, "acme", first.id, base=base.name) for _ in range(2)]
    assert published[0] == published[1]
    other = registry.uploads.begin(admin, "acme", "sales")
    assert [registry.uploads.cancel(cancel, "acme", other.id) for _ in range(2)] == [other, other]
    with pytest.raises(NotFoundError):
        registry.uploads.cancel(admin, "acme", other.id)
