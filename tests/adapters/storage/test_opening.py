"""Which place for bytes the settings mean."""

import logging
import sys
from pathlib import Path

import pytest

from adapters import InvalidError, RegistrySettings, StorageError
from adapters.storage import LocalBlobs, open_blobs
from tests.adapters.storage.conftest import FILES, RemotePlace, assert_is_told, put, stage, weights
from tests.s3 import BUCKET, FaultProxy


def test_without_a_url_the_blobs_are_in_the_home(tmp_path: Path) -> None:
    assert isinstance(open_blobs(tmp_path), LocalBlobs)
    assert (tmp_path / "store" / "sha256").is_dir()


@pytest.mark.parametrize(
    "url",
    ["", "bucket", "s3:/bucket", "s3://", "s3://b", "gs://bucket", "s3://id:secret@bucket", "s3://bucket/../x",
     "s3://bucket//x", "s3://bucket?x=1", "s3://Bucket", "s3://bucket/x\n"],
)  # fmt: skip
def test_a_url_that_names_no_bucket_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidError) as caught:
        open_blobs(tmp_path, store_url=url)
    assert caught.value.code == "invalid_store_url"
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("endpoint", ["", "minio:9000", "ftp://minio", "https://id:secret@minio", "https://minio/?x"])
def test_an_endpoint_that_is_no_address_is_refused_and_not_repeated(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(InvalidError) as caught:
        open_blobs(tmp_path, store_url="s3://bucket", store_endpoint=endpoint)
    assert caught.value.code == "invalid_store_endpoint"
    assert "secret" not in caught.value.message


def test_an_endpoint_without_a_url_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError) as caught:
        open_blobs(tmp_path, store_endpoint="https://minio:9000")
    assert caught.value.code == "invalid_store_endpoint"


def test_a_store_whose_driver_is_missing_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "adapters.storage.obstore", raising=False)
    with pytest.raises(InvalidError, match=r"lorikeet\[s3\]") as caught:
        open_blobs(tmp_path, store_url="s3://bucket")
    assert caught.value.code == "driver_not_installed"


def test_the_settings_are_not_shown_where_people_write_passwords() -> None:
    shown = RegistrySettings(store_url="s3://secret", store_endpoint="https://secret", database_url="x://secret")
    assert "secret" not in repr(shown)


def test_a_wrong_bucket_is_found_at_the_start(proxy: FaultProxy, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such bucket") as caught:
        open_blobs(tmp_path, store_url="s3://no-such-bucket", store_endpoint=proxy.endpoint)
    assert_is_told(caught.value, "store_misconfigured", proxy)
    assert "no-such-bucket" not in caught.value.message


def test_credentials_that_are_refused_are_found_at_the_start(proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.fail("forbid")
    with pytest.raises(StorageError, match="credentials") as caught:
        open_blobs(tmp_path, store_url=f"s3://{BUCKET}", store_endpoint=proxy.endpoint)
    assert_is_told(caught.value, "store_misconfigured", proxy)


def test_credentials_that_are_missing_are_found_at_the_start(
    proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(StorageError, match="credentials") as caught:
        open_blobs(tmp_path, store_url=f"s3://{BUCKET}", store_endpoint=proxy.endpoint)
    assert_is_told(caught.value, "store_misconfigured", proxy)


def test_a_store_that_is_down_at_the_start_stops_nobody(
    remote: RemotePlace, proxy: FaultProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    staged = put(remote.blobs, stage(tmp_path))
    weights(remote.blobs, staged.digest)
    proxy.fail("refuse")
    url = f"s3://{BUCKET}/{remote.prefix}"
    with caplog.at_level(logging.WARNING):
        blobs = open_blobs(remote.root.parent, store_url=url, store_endpoint=proxy.endpoint)
    assert "does not answer" in caplog.text
    assert weights(blobs, staged.digest) == staged.contents[FILES[1]]


def test_a_plain_http_endpoint_is_only_spoken_to_if_it_was_named(
    moto_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{moto_port}")
    with pytest.raises(StorageError) as caught:
        open_blobs(tmp_path, store_url=f"s3://{BUCKET}")
    assert caught.value.code == "store_misconfigured"
