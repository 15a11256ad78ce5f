"""An upload over HTTP: served at once, without a restart; or refused, with nothing left of it."""

import http.client
import json
import socket
import tempfile
from collections.abc import Callable
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from server.admission import Uploads
from server.errors import UploadInProgressError
from tests.builders import adapter_config, adapter_tensors, safetensors_bytes
from tests.server.uploading import NAMES, Files, as_multipart, as_tar, as_zip, files_of
from tests.server.world import OPERATOR, World, in_thread, wait_until

VERSIONS = "/admin/v1/tenants/acme/adapters/support/versions"


def post(world: World, upload: dict[str, Any], *, key: str = "acme-admin", query: str = "") -> httpx.Response:
    with world.client(key) as client:
        return client.post(VERSIONS + query, **upload)


@pytest.mark.parametrize("pack", [as_multipart, as_tar, lambda files: as_tar(files, "w"), as_zip])
def test_an_upload_is_probed_promoted_and_answers_at_once(
    world: World, pack: Callable[[Files], dict[str, Any]]
) -> None:
    response = post(world, pack(files_of(world.make_folder(seed=1))), query="?promote=true")
    assert response.status_code == 201, response.text
    assert (response.json()["label"], response.json()["state"]) == ("acme/support@1", "ready")
    assert world.ask("support").headers["x-lorikeet-adapter"] == "acme/support@1"
    assert world.residency() == {"acme/support@1": 0}


def test_the_same_bytes_again_are_the_same_version(world: World) -> None:
    upload = as_multipart(files_of(world.make_folder(seed=1)))
    first, second = post(world, upload), post(world, upload)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["version"] == second.json()["version"] == 1


def test_an_adapter_that_changes_nothing_is_taken_with_a_warning(world: World) -> None:
    response = post(world, as_multipart(files_of(world.make_folder(seed=1, strength=0))))
    assert response.status_code == 201
    assert response.json()["warnings"] == ["adapter_is_noop"]


def bad_uploads(world: World) -> dict[str, dict[str, Any]]:
    good = files_of(world.make_folder(seed=1))
    config, weights = NAMES
    tensors = adapter_tensors(world.base, 8)
    return {
        "no body": {"content": b""},
        "not an archive": {"content": b"hello" * 100},
        "only the config": as_multipart({config: good[config]}),
        "a stranger among the files": as_multipart(good | {"evil.py": b"import os"}),
        "a path for a name": as_tar({f"../../{name}": content for name, content in good.items()}),
        "truncated weights": as_multipart(good | {weights: good[weights][:-10]}),
        "a pickle": as_zip(good | {weights: b"\x80\x04K\x01."}),
        "a config that is a list": as_multipart(good | {config: b"[]"}),
        "a rank that the registry refuses": as_multipart(good | {config: json.dumps(adapter_config(128)).encode()}),
        "a name that is no base's": as_multipart(
            good | {weights: safetensors_bytes({"x": next(iter(tensors.values()))})}
        ),
        "a field instead of a file": {"data": {"a": "b"}, "files": [("files", (config, good[config]))]},
        "multipart without a boundary": {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
        "a broken gzip": {"content": as_tar(good)["content"][:-50]},
    }


def test_a_bad_upload_is_refused_with_a_code_and_leaves_nothing(world: World) -> None:
    golden = world.ask().json()["choices"]
    for name, upload in bad_uploads(world).items():
        response = post(world, upload, query="?promote=true")
        assert response.status_code in {400, 413, 422}, (name, response.text)
        assert set(response.json()["error"]) - {"problems"} == {"message", "type", "param", "code"}, name
        assert str(world.folder.parent) not in response.text, name
        assert world.registry.adapters.list(OPERATOR, "acme") == [], name
        assert world.residency() == {}, name
        assert world.engine.loaded == {}, name
        assert world.ask().json()["choices"] == golden, name
    left = [path for path in (world.folder.parent / "home" / "store").rglob("*") if path.is_file()]
    assert left == []


def test_an_upload_that_the_probe_refuses_says_so(world: World) -> None:
    world.engine.samples_nan = True
    response = post(world, as_multipart(files_of(world.make_folder(seed=1))))
    assert (response.status_code, response.json()["error"]["code"]) == (422, "probe_failed")


def test_strangers_are_turned_away_before_their_bytes_are_read(world: World) -> None:
    upload = as_multipart(files_of(world.make_folder(seed=1)))
    assert post(world, upload, key="acme").status_code == 403
    assert post(world, upload, key="zoo-admin").status_code == 404
    assert post(world, upload, key="platform").status_code == 201


def test_an_upload_finds_room_when_the_engine_is_full_of_idle_adapters(world: World) -> None:
    for seed in range(3):
        world.publish("acme", f"adapter-{seed}", seed=seed)
        world.answer_marks(f"adapter-{seed}")
    assert len(world.residency()) == 3
    assert post(world, as_multipart(files_of(world.make_folder(seed=9)))).status_code == 201
    assert len(world.engine.loaded) <= 3


def begin_upload(world: World, *, sent: bytes = b"") -> http.client.HTTPConnection:
    """An upload of which only `sent` has left the client."""
    address = urlsplit(world.live.base_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    connection.putrequest("POST", VERSIONS)
    for name, value in (("authorization", f"Bearer {world.keys['acme-admin']}"), ("content-length", "100000")):
        connection.putheader(name, value)
    connection.endheaders(sent)
    return connection


def test_a_tenants_second_upload_is_429_before_its_bytes_are_read_and_others_go_on(world: World) -> None:
    upload = as_multipart(files_of(world.make_folder(seed=1)))
    world.close_gate()
    first = in_thread(lambda: post(world, upload))
    wait_until(lambda: any(world.engine.running.values()))
    with closing(begin_upload(world)) as connection, connection.getresponse() as refused:
        assert (refused.status, json.load(refused)["error"]["code"]) == (429, "upload_in_progress")
        assert refused.headers["retry-after"]
    with world.client("zoo-admin") as zoo:
        others = in_thread(lambda: zoo.post(VERSIONS.replace("acme", "zoo"), **upload))
        wait_until(lambda: sum(world.engine.running.values()) == 2)
        world.open_gate()
        assert others().status_code == 201
    assert first().status_code == 201
    assert post(world, upload).status_code == 200


def test_no_more_tenants_upload_at_once_than_there_are_places() -> None:
    uploads = Uploads(at_once=1)
    with uploads.admitted("acme"), pytest.raises(UploadInProgressError), uploads.admitted("zoo"):
        pass
    with uploads.admitted("zoo"):
        pass


def test_a_client_that_hangs_up_during_its_upload_is_no_failure_and_gives_its_place_back(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "server.middleware")
    connection = begin_upload(world, sent=b"abc")
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    wait_until(lambda: bool(caplog.records))
    assert [(record.message, record.exc_info) for record in caplog.records] == [("client gone", None)]
    assert post(world, as_multipart(files_of(world.make_folder(seed=1)))).status_code == 201


def test_an_upload_that_stops_coming_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.admin.uploads.PATIENCE_SECONDS", 0.05)
    with closing(begin_upload(world, sent=b"abc")) as connection, connection.getresponse() as refused:
        assert (refused.status, json.load(refused)["error"]["code"]) == (400, "upload_stalled")


@pytest.mark.parametrize("pack", [as_multipart, lambda files: as_tar(files, "w")])
def test_what_is_uploaded_does_not_pass_through_the_systems_temporary_folder(
    world: World, monkeypatch: pytest.MonkeyPatch, pack: Callable[[Files], dict[str, Any]]
) -> None:
    files = files_of(world.make_folder(seed=1)) | {NAMES[1]: b"x" * (3 << 20)}
    monkeypatch.setattr(tempfile, "tempdir", str(world.folder / "nowhere"))
    assert post(world, pack(files)).status_code == 422


def test_a_rank_that_is_not_served_is_409(world: World) -> None:
    response = post(world, as_multipart(files_of(world.make_folder(seed=1, rank=32))))
    assert (response.status_code, response.json()["error"]["code"]) == (409, "rank_unserved")
