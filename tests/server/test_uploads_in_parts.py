"""An upload in parts over HTTP: it goes on after broken connections and restarts, and ends as any other upload."""

import asyncio
import hashlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.requests import Request
from starlette.types import ASGIApp, Message

from adapters import Caller, Limits, open_registry
from server.admin.uploads import MIN_BYTES_PER_SECOND, body_chunks
from server.app import create_app
from server.engine.fake import FakeEngine
from server.errors import BadRequestError
from tests.builders import make_base, make_base_of, make_model_folder
from tests.live_server import LiveServer
from tests.server.administering import ACME, call, read
from tests.server.uploading import NAMES, Files, as_multipart, files_of
from tests.server.world import OPERATOR, World, in_thread, make_settings, wait_until

UPLOADS = f"{ACME}/uploads"
CONFIG, WEIGHTS = NAMES


def begin(world: World, **asked: Any) -> str:
    """The path of a new upload."""
    answer = call(world, "POST", UPLOADS, json={"adapter": "support"} | asked)
    assert answer.status_code == 201, answer.text
    return f"{UPLOADS}/{answer.json()['id']}"


def send(world: World, path: str, name: str, offset: object, content: bytes, **request: Any) -> httpx.Response:
    headers = {"upload-offset": str(offset)} | request.pop("headers", {})
    return call(world, "PATCH", f"{path}/files/{name}", content=content, headers=headers, **request)


def send_all(world: World, path: str, files: Files, part_bytes: int = 1000) -> None:
    for name, content in files.items():
        offset = 0
        while offset < len(content):
            answer = send(world, path, name, offset, content[offset : offset + part_bytes])
            assert (answer.status_code, answer.content) == (204, b""), answer.text
            offset = int(answer.headers["upload-offset"])


def finish(world: World, path: str, **asked: Any) -> httpx.Response:
    return call(world, "POST", f"{path}/finish", json=asked)


@pytest.fixture
def files(world: World) -> Files:
    return files_of(world.make_folder(seed=1))


def digests_of(files: Files) -> dict[str, str]:
    return {name: f"sha256:{hashlib.sha256(content).hexdigest()}" for name, content in files.items()}


def test_an_upload_in_parts_is_probed_promoted_and_answers_at_once(world: World, files: Files) -> None:
    path = begin(world)
    send_all(world, path, files)
    assert read(world, path)["files"] == {name: len(content) for name, content in files.items()}
    assert [upload["id"] for upload in read(world, UPLOADS)["data"]] == [path.rpartition("/")[2]]
    published = finish(world, path, promote=True, digests=digests_of(files))
    assert published.status_code == 201, published.text
    version = published.json()
    assert (version["label"], version["state"], version["origin"]) == (
        "acme/support@1",
        "ready",
        {"method": "upload"},
    )
    assert world.ask("support").headers["x-lorikeet-adapter"] == "acme/support@1"
    assert read(world, path)["version"] == "acme/support@1"
    assert read(world, UPLOADS)["data"] == []
    again = finish(world, path)
    assert (again.status_code, again.content) == (201, published.content)


def test_it_is_the_same_version_as_the_same_bytes_at_once(world: World, files: Files) -> None:
    at_once = call(world, "POST", f"{ACME}/adapters/support/versions", **as_multipart(files))
    path = begin(world)
    send_all(world, path, files)
    answer = call(world, "POST", f"{path}/finish")  # a body is not needed
    assert (answer.status_code, answer.content) == (200, at_once.content)


def test_a_part_at_the_wrong_place_is_416_with_the_right_one(world: World) -> None:
    path = begin(world)
    assert send(world, path, "a", 0, b"abc").headers["upload-offset"] == "3"
    for offset in (0, 2, 4):
        refused = send(world, path, "a", offset, b"def")
        assert (refused.status_code, refused.json()["error"]["code"]) == (416, "offset_mismatch")
        assert refused.headers["upload-offset"] == "3"
    assert send(world, path, "b", 1, b"x").headers["upload-offset"] == "0"
    assert read(world, path)["files"] == {"a": 3}


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"upload-offset": ""}, 400, "invalid_request"),
        ({"upload-offset": "-1"}, 400, "invalid_request"),
        ({"upload-offset": "0x1"}, 400, "invalid_request"),
        ({"upload-offset": "1" * 16}, 400, "invalid_request"),
        ({"content-encoding": "gzip"}, 415, "unsupported_media_type"),
    ],
)
def test_a_part_that_does_not_say_what_it_is_is_refused(
    world: World, headers: dict[str, str], status: int, code: str
) -> None:
    path = begin(world)
    refused = send(world, path, "a", 0, b"abc", headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    assert read(world, path)["files"] == {}


def test_names_and_bodies_that_can_not_be_are_refused_with_a_code(world: World) -> None:
    path = begin(world)
    for name in (".hidden", "a%00", "a%20b", "x" * 201):
        assert send(world, path, name, 0, b"x").json()["error"]["code"] == "invalid_file_name"
    assert send(world, path, "..%2Fx", 0, b"x").status_code == 404
    for asked in ({"adapter": "x", "kind": "gguf"}, {"adapter": "x", "more": 1}, {}):
        assert call(world, "POST", UPLOADS, json=asked).status_code == 400
    assert finish(world, path, digest="x").json()["error"]["param"] == "digest"
    assert finish(world, path, base="nobody").json()["error"]["code"] == "base_not_found"


def test_a_digest_that_differs_is_400_and_names_the_file(world: World, files: Files) -> None:
    path = begin(world)
    send_all(world, path, files | {WEIGHTS: files[WEIGHTS][:-1] + b"\0"})
    refused = finish(world, path, digests=digests_of(files))
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], WEIGHTS in error["message"]) == (400, "digest_mismatch", True)
    assert world.registry.adapters.list(OPERATOR, "acme") == []
    assert read(world, path)["files"] == {name: len(content) for name, content in files.items()}


def test_what_the_gate_or_the_probe_refuses_says_so_and_is_cancelled(world: World, files: Files) -> None:
    path = begin(world)
    send_all(world, path, files)
    world.engine.samples_nan = True
    refused = finish(world, path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "probe_failed")
    send(world, path, "evil.py", 0, b"import os")
    assert finish(world, path).json()["error"]["code"] == "unexpected_file"
    assert call(world, "DELETE", path).json()["files"]["evil.py"] == 9
    assert call(world, "GET", path).json()["error"]["code"] == "upload_not_found"
    assert list((world.folder.parent / "home" / "store" / "uploads").iterdir()) == []


def test_a_part_may_be_larger_than_other_bodies_but_not_than_the_upload(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = begin(world)
    assert send(world, path, "a", 0, b"x" * (3 << 20)).headers["upload-offset"] == str(3 << 20)
    monkeypatch.setattr("adapters.upload_rows.BESIDE_WEIGHTS", 4 << 20)
    monkeypatch.setattr(world.registry.uploads, "_limits", Limits(max_upload_bytes=0))
    refused = send(world, path, "b", 0, b"x" * (2 << 20))
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "file_too_large")
    assert read(world, path)["files"] == {"a": 3 << 20}


def test_a_model_comes_in_parts(world: World, tmp_path: Path) -> None:
    world.registry.bases.add(OPERATOR, make_base_of(make_model_folder(tmp_path / "base"), "whole"))
    path = begin(world, adapter="model", kind="full")
    send_all(world, path, {one.name: one.read_bytes() for one in make_model_folder(tmp_path / "x", seed=1).iterdir()})
    published = finish(world, path, base="whole", promote=True)
    assert published.status_code == 201, published.text
    assert (published.json()["kind"], read(world, f"{ACME}/adapters/model")["live"]) == ("full", 1)


def test_an_adapter_of_another_base_is_published_unprobed_and_not_promoted(world: World, files: Files) -> None:
    other = world.registry.bases.add(OPERATOR, make_base("other"))
    path = begin(world)
    send_all(world, path, files)
    refused = finish(world, path, base=other.name, promote=True)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "base_mismatch")
    assert finish(world, path, base=other.name).json()["state"] == "unprobed"


# --- broken connections -----------------------------------------------------------------------------------------------


def open_part(world: World, path: str, offset: int, sent: bytes, *, key: str = "acme-admin") -> Any:
    """A part of 100 000 bytes of which only `sent` has left the client."""
    address = urlsplit(world.live.base_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    connection.putrequest("PATCH", f"{path}/files/a")
    headers = {"authorization": f"Bearer {world.keys[key]}", "content-length": "100000", "upload-offset": str(offset)}
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders(sent)
    return connection


@pytest.fixture
def coming(world: World) -> Callable[[str], bool]:
    """Whether some bytes of the part that comes to an upload are on the disk."""
    uploads = world.folder.parent / "home" / "store" / "uploads"
    return lambda path: (uploads / path.rpartition("/")[2] / "a").exists()


def test_a_client_that_dies_in_a_part_loses_that_part_alone_and_goes_on(
    world: World, coming: Callable[[str], bool], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "server.middleware")
    path = begin(world)
    connection = open_part(world, path, 0, b"abc")
    wait_until(lambda: coming(path))
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    wait_until(lambda: bool(caplog.records))
    assert [(record.message, record.exc_info) for record in caplog.records] == [("client gone", None)]
    assert read(world, path)["files"] == {}
    assert send(world, path, "a", 0, b"whole").headers["upload-offset"] == "5"


def test_a_part_that_stops_coming_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.admin.uploads.PATIENCE_SECONDS", 0.05)
    path = begin(world)
    with closing(open_part(world, path, 0, b"abc")) as connection, connection.getresponse() as refused:
        assert (refused.status, json.load(refused)["error"]["code"]) == (400, "upload_stalled")
    assert read(world, path)["files"] == {}


def test_while_a_part_comes_the_tenants_other_parts_wait_and_other_tenants_go_on(
    world: World, coming: Callable[[str], bool]
) -> None:
    path = begin(world)
    with closing(open_part(world, path, 0, b"abc")):
        wait_until(lambda: coming(path))
        refused = send(world, path, "b", 0, b"x")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "upload_in_progress")
        assert refused.headers["retry-after"]
        for busy in (finish(world, path), call(world, "DELETE", path)):
            assert (busy.status_code, busy.json()["error"]["code"]) == (409, "upload_busy")
        zoos = call(world, "POST", UPLOADS.replace("acme", "zoo"), "zoo-admin", json={"adapter": "x"}).json()["id"]
        zoos_path = f"{UPLOADS.replace('acme', 'zoo')}/{zoos}"
        with world.client("zoo-admin") as zoo:
            part = zoo.patch(f"{zoos_path}/files/a", content=b"x", headers={"upload-offset": "0"})
        assert part.status_code == 204
        assert world.ask(key="zoo").status_code == 200


def test_while_a_part_comes_the_tenant_cancels_and_finishes_its_other_uploads(
    world: World, coming: Callable[[str], bool], files: Files
) -> None:
    coming_path, other, whole = begin(world), begin(world), begin(world)
    send_all(world, whole, files)
    with closing(open_part(world, coming_path, 0, b"abc")):
        wait_until(lambda: coming(coming_path))
        assert call(world, "DELETE", other).status_code == 200
        assert finish(world, whole).status_code == 201


@pytest.mark.parametrize(("bytes_each", "is_too_slow"), [(1, True), (59 * MIN_BYTES_PER_SECOND, False)])
def test_a_body_that_trickles_is_given_up(bytes_each: int, is_too_slow: bool) -> None:  # noqa: FBT001  — a case
    now = 0.0

    async def receive() -> Message:
        nonlocal now
        now += 59
        return {"type": "http.request", "body": b"x" * bytes_each, "more_body": now < 59 * 10}

    async def read_all() -> int:
        request = Request({"type": "http", "method": "PATCH", "headers": []}, receive)
        return sum([len(chunk) async for chunk in body_chunks(request, clock=lambda: now)])

    if is_too_slow:
        with pytest.raises(BadRequestError, match="too slowly"):
            asyncio.run(read_all())
    else:
        assert asyncio.run(read_all()) == 10 * bytes_each


def test_strangers_take_nobodys_place_and_learn_nothing(world: World, coming: Callable[[str], bool]) -> None:
    path = begin(world)
    with closing(open_part(world, path, 0, b"abc")):
        wait_until(lambda: coming(path))
        upload_id = path.rpartition("/")[2]
        for method, of in (("PATCH", "/files/a"), ("POST", "/finish"), ("DELETE", ""), ("GET", "")):
            for foreign in (path + of, f"{UPLOADS.replace('acme', 'zoo')}/{upload_id}{of}"):
                answer = call(world, method, foreign, "zoo-admin", headers={"upload-offset": "0"})
                assert answer.status_code == 404, (method, foreign, answer.text)


def test_a_large_part_goes_to_the_disk_in_small_chunks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = begin(world)
    sizes: list[int] = []
    append = world.registry.uploads.append

    def watched(caller: Caller, tenant: str, upload_id: str, name: str, offset: int, chunks: Iterator[bytes]) -> int:
        return append(caller, tenant, upload_id, name, offset, _noted(chunks, sizes))

    monkeypatch.setattr(world.registry.uploads, "append", watched)
    assert send(world, path, "a", 0, b"x" * (8 << 20)).status_code == 204
    assert sum(sizes) == 8 << 20
    assert max(sizes) <= 1 << 20


def _noted(chunks: Iterator[bytes], sizes: list[int]) -> Iterator[bytes]:
    for chunk in chunks:
        sizes.append(len(chunk))
        yield chunk


def test_two_that_send_one_file_at_once_make_one_of_it(world: World) -> None:
    path = begin(world)
    start = threading.Barrier(2)

    def write(content: bytes) -> httpx.Response:
        start.wait(10)
        return send(world, path, "a", 0, content)

    answers = [wait() for wait in [in_thread(partial(write, content)) for content in (b"one", b"two")]]
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses in ([204, 416], [204, 429])
    assert read(world, path)["files"] == {"a": 3}


@contextmanager
def restarted(world: World, database_url: str | None) -> Iterator[World]:
    """Another server on the same home, after the first one has gone."""
    world.live.__exit__(None, None, None)
    engine, settings = FakeEngine(world.base.name), make_settings()
    with open_registry(world.folder.parent / "home", database_url) as registry:

        def make_app() -> ASGIApp:
            return create_app(settings, registry, engine, base=world.base, secret=b"secret" * 6)

        with LiveServer(make_app, drain_seconds=1) as live:
            yield World(registry, world.base, engine, live, world.keys, world.folder)


def test_a_server_that_stops_in_a_part_forgets_that_part_and_says_nothing(
    world: World, database_url: str | None, coming: Callable[[str], bool], caplog: pytest.LogCaptureFixture
) -> None:
    path = begin(world)
    with restarted(world, database_url) as stopping:
        connection = open_part(stopping, path, 0, b"abc")
        wait_until(lambda: coming(path))
    connection.close()
    assert [record.exc_info for record in caplog.records if record.exc_info] == []
    with restarted(world, database_url) as again:
        assert read(again, path)["files"] == {}
        assert send(again, path, "a", 0, b"whole").status_code == 204


def test_an_upload_survives_the_server(world: World, files: Files, database_url: str | None) -> None:
    path = begin(world)
    half = {name: content[: len(content) // 2] for name, content in files.items()}
    send_all(world, path, half)
    torn = world.folder.parent / "home" / "store" / "uploads" / path.rpartition("/")[2] / WEIGHTS
    with torn.open("ab") as file:
        file.write(b"what a killed server had not acknowledged")
    with restarted(world, database_url) as again:
        came = read(again, path)["files"]
        assert came == {name: len(content) for name, content in half.items()}
        for name, offset in came.items():
            assert send(again, path, name, offset, files[name][offset:]).status_code == 204
        assert finish(again, path, digests=digests_of(files)).status_code == 201
